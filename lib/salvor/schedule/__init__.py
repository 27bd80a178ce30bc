"""When commands of `inv` run by themselves: by systemd's timers, or by cron where there is no systemd."""
