//! How many calls of a plugin may be under way.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Lets a number of calls in at once and turns the others away.
#[derive(Debug)]
pub(crate) struct Gate {
    most: usize,
    inside: AtomicUsize,
}

/// A call that was let in. It leaves when this is dropped.
#[derive(Debug)]
pub(crate) struct Place<'a>(&'a AtomicUsize);

impl Gate {
    /// For `most` calls at once.
    pub(crate) fn new(most: usize) -> Self {
        Self { most, inside: AtomicUsize::new(0) }
    }

    /// A place, if one is free.
    pub(crate) fn enter(&self) -> Option<Place<'_>> {
        let place = Place(&self.inside);
        // Whoever is too many leaves at once: the place is dropped.
        (self.inside.fetch_add(1, Ordering::Relaxed) < self.most).then_some(place)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::Gate;

    #[test]
    fn a_full_gate_opens_when_somebody_leaves() {
        let gate = Gate::new(2);
        let (first, second) = (gate.enter(), gate.enter());
        assert!(first.is_some() && second.is_some() && gate.enter().is_none());
        drop(first);
        assert!(gate.enter().is_some());
    }
}
