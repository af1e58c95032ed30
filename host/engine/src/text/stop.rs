//! Stop texts, found across the borders of tokens.

/// Watches the text of one sequence for its stop texts. Text that may be the start of one is held
/// back until it is clear that it is not.
pub struct StopWatch {
    stops: Vec<String>,
    include: bool,
    held: String,
}

impl StopWatch {
    /// `include` leaves the stop text in the output.
    pub fn new(stops: Vec<String>, include: bool) -> Self {
        let stops = stops.into_iter().filter(|stop| !stop.is_empty()).collect();
        Self { stops, include, held: String::new() }
    }

    /// Whether there is nothing to watch for: text need not pass through here.
    pub fn is_idle(&self) -> bool {
        self.stops.is_empty()
    }

    /// Takes new text and appends to `out` what may be shown. Answers with the stop text that was
    /// reached; of several, the one that ends first, whatever pieces the text came in.
    pub fn push(&mut self, piece: &str, out: &mut String) -> Option<String> {
        self.held.push_str(piece);
        if let Some((start, stop)) = self.first_stop() {
            let shown = if self.include { start + stop.len() } else { start };
            out.push_str(&self.held[..shown]);
            self.held.clear();
            return Some(stop);
        }
        let shown = self.held.len() - self.doubtful();
        out.push_str(&self.held[..shown]);
        self.held.drain(..shown);
        None
    }

    /// Appends what was held back: the sequence ended before it became a stop text.
    pub fn finish(&mut self, out: &mut String) {
        out.push_str(&self.held);
        self.held.clear();
    }

    fn first_stop(&self) -> Option<(usize, String)> {
        let found = self.stops.iter().filter_map(|stop| Some((self.held.find(stop)?, stop)));
        let first = found.min_by_key(|(start, stop)| (start + stop.len(), *start));
        first.map(|(start, stop)| (start, stop.clone()))
    }

    /// Bytes at the end of the held text that could begin a stop text.
    fn doubtful(&self) -> usize {
        let begun = |stop: &String| {
            let longest = self.held.len().min(stop.len() - 1);
            let ends = |length: &usize| self.held.as_bytes().ends_with(&stop.as_bytes()[..*length]);
            (1..=longest).rev().find(ends).unwrap_or(0)
        };
        self.stops.iter().map(begun).max().unwrap_or(0)
    }
}
