"""Files from elsewhere: the bucket, the web, object stores. Resumed where cut, verified, never half under a name."""
