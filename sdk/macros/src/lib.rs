//! The attributes of drystone-sdk: `#[policy]` and `#[config]`. Their documentation is there.

mod schema;

use proc_macro::TokenStream;
use proc_macro2::TokenStream as Tokens;
use quote::quote;
use syn::{DeriveInput, Error, Ident, ImplItem, ItemImpl, Type, parse_macro_input};

/// Methods of `Policy` that are hooks. Each has a module of this name in `drystone_sdk::bindings`.
const HOOKS: &[&str] = &[
    "authorize",
    "on_request",
    "select_adapter",
    "resolve_adapter",
    "admit",
    "score_replicas",
    "on_chunk",
    "on_response",
    "on_complete",
];

/// Makes the plugin's component export the hooks that this `impl Policy for ...` writes down.
#[proc_macro_attribute]
pub fn policy(arguments: TokenStream, item: TokenStream) -> TokenStream {
    let item = parse_macro_input!(item as ItemImpl);
    let exports = no_arguments(arguments.into(), "policy").and_then(|()| exports(&item));
    let exports = exports.unwrap_or_else(Error::into_compile_error);
    quote!(#item #exports).into()
}

/// Makes a struct or an enum a plugin's configuration: it can be read, has a schema, and refuses
/// keys that it does not know.
#[proc_macro_attribute]
pub fn config(arguments: TokenStream, item: TokenStream) -> TokenStream {
    let item = parse_macro_input!(item as DeriveInput);
    let schema = no_arguments(arguments.into(), "config").and_then(|()| schema::implement(&item));
    let schema = schema.unwrap_or_else(Error::into_compile_error);
    quote! {
        #[derive(::drystone_sdk::serde::Deserialize)]
        #[serde(crate = "::drystone_sdk::serde", deny_unknown_fields)]
        #item
        #schema
    }
    .into()
}

fn no_arguments(arguments: Tokens, attribute: &str) -> syn::Result<()> {
    match arguments.is_empty() {
        true => Ok(()),
        false => Err(Error::new_spanned(arguments, format!("`#[{attribute}]` takes no arguments"))),
    }
}

fn exports(item: &ItemImpl) -> syn::Result<Tokens> {
    let policy = &item.self_ty;
    if item.trait_.is_none() || !item.generics.params.is_empty() || !is_path(policy) {
        let why = "`#[policy]` stands on `impl Policy for MyPolicy`, without generics";
        return Err(Error::new_spanned(policy, why));
    }
    let hooks = hooks(item);
    Ok(quote! {
        #[cfg(target_family = "wasm")]
        const _: () = {
            ::std::thread_local! {
                static SLOT: ::drystone_sdk::export::Slot<#policy> =
                    const { ::drystone_sdk::export::Slot::new() };
            }
            impl ::drystone_sdk::export::Plugin for #policy {
                const NAME: &'static str = ::core::env!("CARGO_PKG_NAME");
                const VERSION: &'static str = ::core::env!("CARGO_PKG_VERSION");
                fn slot() -> &'static ::std::thread::LocalKey<::drystone_sdk::export::Slot<Self>> {
                    &SLOT
                }
            }
            type Exported = ::drystone_sdk::export::Exported<#policy>;
            ::drystone_sdk::bindings::plugin::export!(
                Exported with_types_in ::drystone_sdk::bindings::plugin
            );
            #(::drystone_sdk::bindings::#hooks::export!(
                Exported with_types_in ::drystone_sdk::bindings::#hooks
            );)*
        };
    })
}

fn is_path(ty: &Type) -> bool {
    matches!(ty, Type::Path(_))
}

/// The hooks that the impl block overrides.
fn hooks(item: &ItemImpl) -> Vec<&Ident> {
    let functions = item.items.iter().filter_map(|item| match item {
        ImplItem::Fn(function) => Some(&function.sig.ident),
        _ => None,
    });
    functions.filter(|name| HOOKS.iter().any(|hook| name == hook)).collect()
}
