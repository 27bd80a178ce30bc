"""The status page of a platform: what customers see of its services, in Korean and English, whatever becomes of us."""
