//! Drystone's gateway: HTTP and the OpenAI JSON.
