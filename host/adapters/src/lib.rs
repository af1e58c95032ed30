//! Drystone's adapters: PEFT adapters: manifests, weights, local pairs, catalogue.
