"""The flags of `kubectl relay`, in pflag's forms, those of docker compose, and completion."""
