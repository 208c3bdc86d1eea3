"""The flags of `kubectl relay`, in pflag's forms, and the completion of all command lines."""
