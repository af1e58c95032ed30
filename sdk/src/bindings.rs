//! `drystone:policy` in Rust, generated from `sdk/wit`: the host's functions in [`imports`], and
//! one module a hook, each with a macro that exports it.
#![allow(missing_docs, reason = "generated; sdk/wit has the documentation")]
#![allow(clippy::allow_attributes_without_reason, reason = "generated")]

/// What the host offers, and the words that hooks share.
pub mod imports {
    wit_bindgen::generate!({
        path: "wit",
        world: "drystone:policy/imports",
        additional_derives: [Clone, PartialEq],
        generate_all,
    });
}

macro_rules! interface {
    ($module:ident, $world:literal $(, $shared:literal)?) => {
        #[doc = concat!("The exports of the world `", $world, "`.")]
        pub mod $module {
            wit_bindgen::generate!({
                path: ["wit", "worlds"],
                world: $world,
                with: { $($shared: crate::bindings::imports::drystone::policy::types)? },
                additional_derives: [Clone, PartialEq],
                pub_export_macro: true,
            });
        }
    };
}

interface!(plugin, "drystone:guest/plugin");
interface!(authorize, "drystone:guest/authorize", "drystone:policy/types@0.1.0");
interface!(on_request, "drystone:guest/on-request", "drystone:policy/types@0.1.0");
interface!(select_adapter, "drystone:guest/select-adapter", "drystone:policy/types@0.1.0");
interface!(resolve_adapter, "drystone:guest/resolve-adapter", "drystone:policy/types@0.1.0");
interface!(admit, "drystone:guest/admit", "drystone:policy/types@0.1.0");
interface!(score_replicas, "drystone:guest/score-replicas");
interface!(on_chunk, "drystone:guest/on-chunk");
interface!(on_response, "drystone:guest/on-response", "drystone:policy/types@0.1.0");
interface!(on_complete, "drystone:guest/on-complete", "drystone:policy/types@0.1.0");
