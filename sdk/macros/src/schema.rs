//! `drystone_sdk::schema::Schema` for the structs and enums that `#[config]` stands on.
//!
//! Serde's attributes that change what is read are followed, or refused where they are not known.

use proc_macro2::TokenStream as Tokens;
use quote::quote;
use syn::{
    Attribute, Data, DeriveInput, Error, Expr, ExprLit, Field, Fields, Lit, LitStr, Meta, Type,
    Variant,
};

/// The implementation.
pub(crate) fn implement(item: &DeriveInput) -> syn::Result<Tokens> {
    let name = &item.ident;
    if !item.generics.params.is_empty() {
        return Err(Error::new_spanned(&item.generics, "a configuration has no generics"));
    }
    let serde = Serde::of(&item.attrs)?;
    let (mut text, description) = (Text::default(), description(&item.attrs));
    match &item.data {
        Data::Struct(data) => fields(&mut text, &data.fields, &serde)?,
        Data::Enum(data) => variants(&mut text, data.variants.iter(), &serde)?,
        Data::Union(_) => return Err(Error::new_spanned(name, "a union cannot be read")),
    }
    let writes = text.writes();
    Ok(quote! {
        impl ::drystone_sdk::schema::Schema for #name {
            const DESCRIPTION: &'static str = #description;

            fn keywords(out: &mut ::std::string::String) {
                #writes
            }
        }
    })
}

fn fields(text: &mut Text, fields: &Fields, serde: &Serde) -> syn::Result<()> {
    match fields {
        Fields::Named(named) => object(text, named.named.iter(), serde),
        Fields::Unnamed(one) if one.unnamed.len() == 1 => {
            text.keywords(&one.unnamed[0].ty);
            Ok(())
        }
        other => Err(Error::new_spanned(other, "a configuration has named fields or just one")),
    }
}

fn object<'a>(
    text: &mut Text,
    fields: impl Iterator<Item = &'a Field>,
    serde: &Serde,
) -> syn::Result<()> {
    let mut required = Vec::new();
    text.push(r#""type":"object","additionalProperties":false,"properties":{"#);
    for (i, field) in fields.enumerate() {
        let own = Serde::of(&field.attrs)?;
        let ident = field.ident.as_ref().map(ToString::to_string).unwrap_or_default();
        let name = own.rename.unwrap_or_else(|| serde.cased(ident.trim_start_matches("r#")));
        text.push(if i == 0 { "" } else { "," });
        text.push(&format!("{}:{{", json(&name)));
        match description(&field.attrs).as_str() {
            "" => text.description(&field.ty),
            own => text.push(own),
        }
        text.keywords(&field.ty);
        text.push("}");
        if !(own.default || serde.default || is_option(&field.ty)) {
            required.push(json(&name));
        }
    }
    text.push(&format!("}},\"required\":[{}]", required.join(",")));
    Ok(())
}

/// Serde's own way of writing enums: the name of a variant, or an object with it as the one key.
fn variants<'a>(
    text: &mut Text,
    variants: impl Iterator<Item = &'a Variant>,
    serde: &Serde,
) -> syn::Result<()> {
    text.push(r#""oneOf":["#);
    for (i, variant) in variants.enumerate() {
        let own = Serde::of(&variant.attrs)?;
        let name = own.rename.clone().unwrap_or_else(|| serde.cased(&variant.ident.to_string()));
        let name = json(&name);
        text.push(if i == 0 { "{" } else { ",{" });
        text.push(&description(&variant.attrs));
        if matches!(variant.fields, Fields::Unit) {
            text.push(&format!("\"const\":{name}}}"));
            continue;
        }
        text.push(&format!(
            "\"type\":\"object\",\"additionalProperties\":false,\"required\":[{name}],\
             \"properties\":{{{name}:{{"
        ));
        fields(text, &variant.fields, &own)?;
        text.push("}}}");
    }
    text.push("]");
    Ok(())
}

/// The keyword `description` with the lines of documentation as one, and a comma; nothing where
/// there are none.
fn description(attributes: &[Attribute]) -> String {
    let lines = attributes.iter().filter_map(|attribute| match &attribute.meta {
        Meta::NameValue(doc) if doc.path.is_ident("doc") => match &doc.value {
            Expr::Lit(ExprLit { lit: Lit::Str(line), .. }) => Some(line.value()),
            _ => None,
        },
        _ => None,
    });
    let lines: Vec<_> = lines.map(|line| line.trim().to_owned()).collect();
    match lines.is_empty() {
        true => String::new(),
        false => format!("\"description\":{},", json(&lines.join(" "))),
    }
}

fn is_option(ty: &Type) -> bool {
    match ty {
        Type::Path(path) => path.path.segments.last().is_some_and(|last| last.ident == "Option"),
        _ => false,
    }
}

/// Text in which the keywords of types stand.
#[derive(Default)]
struct Text {
    text: String,
    writes: Tokens,
}

impl Text {
    fn push(&mut self, text: &str) {
        self.text.push_str(text);
    }

    fn keywords(&mut self, ty: &Type) {
        self.flush();
        self.writes.extend(quote!(<#ty as ::drystone_sdk::schema::Schema>::keywords(out);));
    }

    /// What the type says of itself.
    fn description(&mut self, ty: &Type) {
        self.flush();
        self.writes.extend(quote! {
            out.push_str(<#ty as ::drystone_sdk::schema::Schema>::DESCRIPTION);
        });
    }

    fn flush(&mut self) {
        let text = std::mem::take(&mut self.text);
        self.writes.extend(quote!(out.push_str(#text);));
    }

    fn writes(mut self) -> Tokens {
        self.flush();
        self.writes
    }
}

/// What serde's attributes say about what is read.
#[derive(Default)]
struct Serde {
    default: bool,
    rename: Option<String>,
    rename_all: Option<LitStr>,
}

impl Serde {
    fn of(attributes: &[Attribute]) -> syn::Result<Self> {
        let mut serde = Self::default();
        for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("serde")) {
            attribute.parse_nested_meta(|meta| {
                let text = |meta: &syn::meta::ParseNestedMeta<'_>| meta.value()?.parse::<LitStr>();
                if meta.path.is_ident("default") {
                    serde.default = true;
                    // With or without a function that gives it.
                    return if meta.input.peek(syn::Token![=]) {
                        text(&meta).map(drop)
                    } else {
                        Ok(())
                    };
                }
                match meta.path.get_ident().map(ToString::to_string).as_deref() {
                    Some("rename") => serde.rename = Some(text(&meta)?.value()),
                    Some("rename_all") => serde.rename_all = Some(known_case(text(&meta)?)?),
                    Some("with" | "deserialize_with") => drop(text(&meta)?),
                    _ => {
                        let why = "`#[config]` has no schema for this; write `Deserialize` and \
                                   `drystone_sdk::schema::Schema` for the type by hand";
                        return Err(meta.error(why));
                    }
                }
                Ok(())
            })?;
        }
        Ok(serde)
    }

    /// A name as `rename_all` has it.
    fn cased(&self, name: &str) -> String {
        let words = words(name);
        let capital = |word: &String| word[..1].to_ascii_uppercase() + &word[1..];
        match self.rename_all.as_ref().map(LitStr::value).as_deref() {
            Some("lowercase") => name.to_ascii_lowercase(),
            Some("UPPERCASE") => name.to_ascii_uppercase(),
            Some("snake_case") => words.join("_"),
            Some("kebab-case") => words.join("-"),
            Some("SCREAMING_SNAKE_CASE") => words.join("_").to_ascii_uppercase(),
            Some("SCREAMING-KEBAB-CASE") => words.join("-").to_ascii_uppercase(),
            Some("PascalCase") => words.iter().map(capital).collect(),
            Some("camelCase") => {
                let pascal: String = words.iter().map(capital).collect();
                pascal[..1].to_ascii_lowercase() + &pascal[1..]
            }
            _ => name.to_owned(),
        }
    }
}

fn known_case(case: LitStr) -> syn::Result<LitStr> {
    const CASES: [&str; 8] = [
        "lowercase",
        "UPPERCASE",
        "PascalCase",
        "camelCase",
        "snake_case",
        "SCREAMING_SNAKE_CASE",
        "kebab-case",
        "SCREAMING-KEBAB-CASE",
    ];
    match CASES.contains(&case.value().as_str()) {
        true => Ok(case),
        false => Err(Error::new_spanned(case, format!("unknown case; known are {CASES:?}"))),
    }
}

/// The words of a name in `snake_case` or `PascalCase`, in lower case.
fn words(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    for letter in name.chars() {
        let begins = letter == '_' || letter.is_uppercase();
        if begins && words.last().is_some_and(|word| !word.is_empty()) {
            words.push(String::new());
        }
        if let (Some(word), true) = (words.last_mut(), letter != '_') {
            word.extend(letter.to_lowercase());
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// A string in JSON.
fn json(text: &str) -> String {
    let mut out = String::from('"');
    for letter in text.chars() {
        match letter {
            '"' | '\\' => out.extend(['\\', letter]),
            control if u32::from(control) < 0x20 => {
                out.push_str(&format!("\\u{:04x}", u32::from(control)));
            }
            other => out.push(other),
        }
    }
    out.push('"');
    out
}
