"""The flags of `kubectl relay`: pflag's forms, and kubectl's own flags."""
