"""What is shipped for the monitoring of others: alert rules for Prometheus."""
