//! The types of `drystone:policy`, generated from `sdk/wit`.
#![allow(missing_docs, reason = "generated; sdk/wit has the documentation")]

wasmtime::component::bindgen!({
    path: "../../sdk/wit",
    world: "policy",
    exports: { default: async },
    additional_derives: [PartialEq, serde::Deserialize, serde::Serialize],
});
