//! The functions that a component imports, one module an interface, with the same signatures.

/// See `log`.
pub mod log {
    use crate::host::log::Level;
    use crate::mock::with;

    pub fn log(level: Level, message: &str) {
        with(|host| host.logs.push((level, message.into())));
    }
}

/// See `clock`.
pub mod clock {
    use crate::mock::with;

    pub fn now_ms() -> u64 {
        with(|host| host.clock.as_millis() as u64)
    }

    pub fn monotonic_ns() -> u64 {
        with(|host| host.clock.as_nanos() as u64)
    }
}

/// See `random`; here everybody can foresee the numbers.
pub mod random {
    use crate::mock::with;

    pub fn random() -> u64 {
        with(|host| {
            host.randoms += 1;
            super::text::hash(&host.randoms.to_string())
        })
    }
}

/// See `metrics`.
pub mod metrics {
    use crate::host::metrics::Error;
    use crate::mock::with;

    pub fn count(name: &str, labels: &[(String, String)], by: u64) -> Result<(), Error> {
        let names = std::iter::once(name).chain(labels.iter().map(|(name, _)| name.as_str()));
        if let Some(bad) = names.into_iter().find(|name| !is_name(name)) {
            return Err(Error::BadName(bad.into()));
        }
        with(|host| *host.counters.entry((name.into(), labels.into())).or_default() += by);
        Ok(())
    }

    fn is_name(name: &str) -> bool {
        let rest = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        name.starts_with(|c: char| c.is_ascii_lowercase())
            && name.chars().all(rest)
            && name.len() <= 64
    }
}

/// See `headers`.
pub mod headers {
    use crate::mock::with;

    pub fn header(name: &str) -> Option<String> {
        with(|host| host.headers.get(name).cloned())
    }
}

/// See `messages`.
pub mod messages {
    use crate::mock::with;
    use crate::types::Message;

    pub fn count() -> u32 {
        with(|host| host.messages.len() as u32)
    }

    pub fn get(index: u32) -> Option<Message> {
        with(|host| host.messages.get(index as usize).cloned())
    }

    pub fn matches(set: u32) -> Vec<u32> {
        let texts = with(|host| host.messages.clone());
        let mut found: Vec<_> =
            texts.iter().flat_map(|message| super::text::matches(set, &message.content)).collect();
        found.sort_unstable();
        found.dedup();
        found
    }
}

/// See `text`.
pub mod text {
    use regex::Regex;
    use sha2::{Digest, Sha256};

    use crate::mock::with;

    pub fn patterns(patterns: &[String]) -> Result<u32, String> {
        let compiled = patterns.iter().map(|pattern| Regex::new(pattern));
        let set = compiled.collect::<Result<_, _>>().map_err(|error| error.to_string())?;
        with(|host| {
            host.sets.push(set);
            Ok(host.sets.len() as u32 - 1)
        })
    }

    pub fn words(words: &[String]) -> Result<u32, String> {
        let literal = |word: &String| format!("(?i){}", regex::escape(word));
        patterns(&words.iter().map(literal).collect::<Vec<_>>())
    }

    pub fn matches(set: u32, text: &str) -> Vec<u32> {
        let set = set_of(set);
        (0..).zip(&set).filter(|(_, pattern)| pattern.is_match(text)).map(|(i, _)| i).collect()
    }

    pub fn redact(set: u32, text: &str, replacement: &str) -> Option<String> {
        let set = set_of(set);
        set.iter().any(|pattern| pattern.is_match(text)).then(|| {
            let replace = |text: String, pattern: &Regex| {
                pattern.replace_all(&text, replacement).into_owned()
            };
            set.iter().fold(text.to_owned(), replace)
        })
    }

    fn set_of(number: u32) -> Vec<Regex> {
        with(|host| host.sets.get(number as usize).cloned().unwrap_or_default())
    }

    /// Four bytes to a token, for there is no model here.
    pub fn count_tokens(text: &str) -> u32 {
        text.len().div_ceil(4) as u32
    }

    pub fn hash(text: &str) -> u64 {
        let digest = Sha256::digest(text);
        digest[..8].iter().fold(0, |hash, byte| hash << 8 | u64::from(*byte))
    }
}

/// See `kv`; there is no quota.
pub mod kv {
    use std::time::Duration;

    use crate::host::kv::Error;
    use crate::mock::{Host, with};

    fn checked<T>(key: &str, act: impl FnOnce(&mut Host) -> T) -> Result<T, Error> {
        match key.len() {
            1..=256 => Ok(with(act)),
            _ => Err(Error::BadKey),
        }
    }

    fn until(host: &Host, lifetime_ms: Option<u64>) -> Option<Duration> {
        lifetime_ms.map(|lifetime| host.clock + Duration::from_millis(lifetime))
    }

    pub fn get(key: &str) -> Option<Vec<u8>> {
        with(|host| host.kv.get(key, host.clock))
    }

    pub fn set(key: &str, value: &[u8], lifetime_ms: Option<u64>) -> Result<(), Error> {
        checked(key, |host| host.kv.set(key, value, until(host, lifetime_ms)))
    }

    pub fn delete(key: &str) {
        with(|host| host.kv.delete(key));
    }

    pub fn add(key: &str, delta: i64, lifetime_ms: Option<u64>) -> Result<i64, Error> {
        checked(key, |host| host.kv.add(key, delta, host.clock, until(host, lifetime_ms)))
    }

    pub fn take(key: &str, tokens: u32, capacity: u32, per_second: f32) -> Result<u64, Error> {
        checked(key, |host| host.kv.take(key, tokens, capacity, per_second, host.clock))
    }
}

/// See `adapters`.
pub mod adapters {
    use crate::host::adapters::Adapter;
    use crate::mock::with;

    pub fn count() -> u32 {
        with(|host| host.adapters.len() as u32)
    }

    pub fn get(index: u32) -> Option<Adapter> {
        with(|host| host.adapters.get(index as usize).cloned())
    }

    pub fn exists(name: &str) -> bool {
        with(|host| host.adapters.iter().any(|adapter| adapter.name == name))
    }
}

/// See `replicas`.
pub mod replicas {
    use crate::host::replicas::Replica;
    use crate::mock::with;

    pub fn replicas() -> Vec<Replica> {
        with(|host| host.replicas.clone())
    }
}

/// See `answer`.
pub mod answer {
    use crate::mock::with;
    use crate::types::Request;

    pub fn asked() -> Option<Request> {
        with(|host| host.asked.clone())
    }

    pub fn released(bytes: u32) -> String {
        with(|host| {
            let from = host.released.len().saturating_sub(bytes as usize);
            let from = (from..).find(|at| host.released.is_char_boundary(*at));
            host.released[from.unwrap_or(0)..].to_owned()
        })
    }

    pub fn state() -> Vec<u8> {
        with(|host| host.state.clone())
    }

    pub fn set_state(state: &[u8]) {
        with(|host| host.state = state.to_vec());
    }
}
