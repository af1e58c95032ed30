//! What guests may answer, where several hooks share the rule.

use std::borrow::Cow;

use contract::policy::verdict::Denied;

use crate::bindings::drystone::policy::types::Denial;

/// Longest code, tenant, model, header name.
const NAME_BYTES: usize = 256;

/// A refusal that may go to the caller.
pub(crate) fn denial(denial: Denial) -> Result<Denied, String> {
    let Denial { status, code, message, retry_after_s } = denial;
    if !matches!(status, 400..=499 | 503) {
        return Err(format!("status {status} is neither 400 to 499 nor 503"));
    }
    if !is_code(&code) {
        return Err(format!("the code {code:?} is not in snake_case"));
    }
    Ok(Denied { status, code: Cow::Owned(code), message, retry_after_s })
}

fn is_code(code: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    code.len() <= NAME_BYTES
        && code.starts_with(|first: char| first.is_ascii_lowercase())
        && code.bytes().all(legal)
}

/// A name that goes into logs, metrics and answers.
pub(crate) fn name(what: &str, name: String) -> Result<String, String> {
    let legal = !name.is_empty() && name.len() <= NAME_BYTES && !name.contains(char::is_control);
    legal.then_some(()).ok_or_else(|| format!("{name:?} cannot be the name of {what}"))?;
    Ok(name)
}

/// All texts of an answer together.
pub(crate) fn size<'a>(
    texts: impl IntoIterator<Item = &'a str>,
    limit: usize,
) -> Result<(), String> {
    let bytes: usize = texts.into_iter().map(str::len).sum();
    if bytes > limit {
        return Err(format!("it has {bytes} bytes of text, {limit} may be"));
    }
    Ok(())
}

/// A number within a range that callers know from the API.
pub(crate) fn within(
    what: &str,
    number: f32,
    range: std::ops::RangeInclusive<f32>,
) -> Result<f32, String> {
    // NaN is in no range.
    if range.contains(&number) {
        return Ok(number);
    }
    Err(format!("{what} = {number} is not from {} to {}", range.start(), range.end()))
}

/// The texts of a refusal.
pub(crate) fn denial_texts(denial: &Denial) -> [&str; 2] {
    [&denial.code, &denial.message]
}

/// A header of the answer, in lower case, that is not one the server sets by itself.
pub(crate) fn header(name: &str, value: &str) -> Result<String, String> {
    const OURS: [&str; 4] = ["content-length", "content-type", "transfer-encoding", "connection"];
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || name.len() > NAME_BYTES || !name.bytes().all(token) {
        return Err(format!("{name:?} is no name of a header"));
    }
    let name = name.to_ascii_lowercase();
    if OURS.contains(&&*name) {
        return Err(format!("the header {name:?} is the server's own"));
    }
    let legal = |byte: u8| byte == b'\t' || (b' '..=b'~').contains(&byte);
    if !value.bytes().all(legal) {
        return Err(format!("the value of the header {name:?} is not visible ASCII"));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denied(status: u16, code: &str) -> Result<Denied, String> {
        let (code, message) = (code.to_owned(), String::new());
        denial(Denial { status, code, message, retry_after_s: None })
    }

    #[test]
    fn refusals_are_errors_of_the_caller_or_of_load() {
        for status in [400, 429, 499, 503] {
            assert!(denied(status, "not_now").is_ok(), "{status}");
        }
        for status in [0, 200, 302, 399, 500, 502, 504, 600] {
            assert!(denied(status, "not_now").is_err(), "{status}");
        }
        for code in ["", "Bad", "1st", "a-b", "a b", "é", &"a".repeat(NAME_BYTES + 1)] {
            assert!(denied(400, code).is_err(), "{code}");
        }
    }

    #[test]
    fn numbers_that_are_none_are_in_no_range() {
        assert!(within("temperature", 0.7, 0.0..=2.0).is_ok());
        for number in [f32::NAN, f32::INFINITY, -0.1, 2.1] {
            assert!(within("temperature", number, 0.0..=2.0).is_err(), "{number}");
        }
    }

    #[test]
    fn headers_cannot_split_an_answer() {
        assert_eq!(header("X-Policy", "a b"), Ok("x-policy".to_owned()));
        for (name, value) in [
            ("Content-Length", "1"),
            ("connection", "close"),
            ("", "a"),
            ("a b", "a"),
            ("a:", "a"),
            ("x", "a\r\nb: c"),
            ("x", "é"),
        ] {
            assert!(header(name, value).is_err(), "{name:?}: {value:?}");
        }
    }
}
