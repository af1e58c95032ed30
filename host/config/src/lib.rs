//! Drystone's config: TOML deployments: raw text to checked settings.
