//! Which plugins see a request, as one bit a plugin.

use config::settings::Scope;
use contract::policy::subject::Route;

/// The scopes of a deployment's plugins, at most 64.
#[derive(Clone, Debug)]
pub struct Scopes {
    plugins: Vec<Scope>,
    /// Plugins that mind a route, by [`Route`] as an index.
    routes: [u64; Route::ALL.len()],
    /// Plugins that mind tenants or models. All others need no comparison.
    patterned: u64,
}

impl Scopes {
    /// Bit `i` will stand for `plugins[i]`.
    pub fn new(plugins: &[Scope]) -> Self {
        assert!(plugins.len() <= 64, "the configuration allows 64 plugins");
        let select = |wanted: &dyn Fn(&Scope) -> bool| {
            let bits = plugins.iter().enumerate().filter(|(_, scope)| wanted(scope));
            bits.fold(0, |mask, (i, _)| mask | 1 << i)
        };
        let routes = Route::ALL.map(|route| select(&|scope| minds(scope, route)));
        let patterned = select(&|scope| scope.tenants.is_some() || scope.models.is_some());
        Self { plugins: plugins.to_vec(), routes, patterned }
    }

    /// Plugins that see requests of `tenant` for `model`.
    pub fn mask(&self, tenant: &str, model: &str, route: Route) -> u64 {
        let candidates = self.mask_route(route);
        let mut mask = candidates & !self.patterned;
        let mut open = candidates & self.patterned;
        while open != 0 {
            let i = open.trailing_zeros();
            open &= open - 1;
            let scope = &self.plugins[i as usize];
            let seen = any(&scope.tenants, tenant) && any(&scope.models, model);
            mask |= u64::from(seen) << i;
        }
        mask
    }

    /// Plugins that mind `route`: all that counts where there is no tenant yet.
    pub fn mask_route(&self, route: Route) -> u64 {
        self.routes[route as usize]
    }
}

fn minds(scope: &Scope, route: Route) -> bool {
    scope.routes.as_ref().is_none_or(|routes| routes.contains(&route))
}

fn any(patterns: &Option<Vec<String>>, text: &str) -> bool {
    let Some(patterns) = patterns else { return true };
    patterns.iter().any(|pattern| matches(pattern, text))
}

/// `*` stands for any text, also none.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((head, tail)) = pattern.split_once('*') else { return pattern == text };
    let (middle, end) = tail.rsplit_once('*').unwrap_or(("", tail));
    let rest = text.strip_prefix(head).and_then(|rest| rest.strip_suffix(end));
    rest.is_some_and(|rest| in_order(middle, rest))
}

/// The earliest place is always a right one for each part: it leaves most to the others.
fn in_order(parts: &str, text: &str) -> bool {
    let after = |text: &str, part: &str| text.find(part).map(|at| at + part.len());
    let mut at = 0;
    parts.split('*').all(|part| {
        let found = after(&text[at..], part);
        at += found.unwrap_or_default();
        found.is_some()
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn words(words: &[&str]) -> Option<Vec<String>> {
        Some(words.iter().map(|word| (*word).to_owned()).collect())
    }

    #[test]
    fn routes_are_indices() {
        assert!(Route::ALL.iter().enumerate().all(|(i, route)| *route as usize == i));
    }

    #[test]
    fn a_bit_stands_for_a_plugin_that_minds_all_three() {
        let scopes = Scopes::new(&[
            Scope::default(),
            Scope { tenants: words(&["acme", "b*"]), ..Scope::default() },
            Scope { models: words(&["*-sql"]), ..Scope::default() },
            Scope { routes: Some(vec![Route::Chat]), ..Scope::default() },
        ]);
        assert_eq!(scopes.mask("acme", "base", Route::Chat), 0b1011);
        assert_eq!(scopes.mask("bolt", "x-sql", Route::Completion), 0b0111);
        assert_eq!(scopes.mask("cat", "sql", Route::Other), 0b0001);
        assert_eq!(scopes.mask_route(Route::Other), 0b0111);
    }

    #[test]
    fn the_last_of_64_has_a_bit() {
        let scopes = Scopes::new(&vec![Scope::default(); 64]);
        assert_eq!(scopes.mask("", "", Route::Other), u64::MAX);
    }

    #[test]
    fn stars_stand_for_any_text_and_never_share_one() {
        for (pattern, text) in [("*", ""), ("a*a", "aa"), ("*b*c*", "xbyc"), ("a**d", "abcd")] {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [("a*a", "a"), ("*b*c*", "cb"), ("", "a"), ("ab*ba", "aba")] {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
    }

    proptest! {
        #[test]
        fn a_pattern_means_what_its_regular_expression_means(
            pattern in "[ab*é]{0,6}",
            text in "[abé]{0,8}",
        ) {
            let expression = format!("^{}$", pattern.replace('*', ".*"));
            let known = regex::Regex::new(&expression).unwrap().is_match(&text);
            prop_assert_eq!(matches(&pattern, &text), known);
        }
    }
}
