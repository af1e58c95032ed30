//! How the demo prints answers: side by side as they come on a terminal, one by one elsewhere.

use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::demo::ask::Question;

/// The lines of all questions.
pub struct Show {
    lines: MultiProgress,
}

/// The line of one question.
pub struct Line {
    bar: ProgressBar,
    question: Question,
}

impl Show {
    /// Nothing shown yet.
    pub fn new() -> Show {
        Show { lines: MultiProgress::new() }
    }

    /// A line for one question.
    pub fn line(&self, question: Question) -> Line {
        let style = ProgressStyle::with_template("  {prefix:15} {wide_msg}");
        let style = style.expect("the template is a constant: this is a bug");
        let bar = self.lines.add(ProgressBar::new_spinner().with_style(style));
        bar.set_prefix(question.model);
        bar.enable_steady_tick(Duration::from_millis(100));
        Line { bar, question }
    }
}

impl Line {
    /// Shows the text so far.
    pub fn update(&self, text: &str) {
        self.bar.set_message(text.to_owned());
    }

    /// Leaves the whole text on the screen.
    pub fn finish(self, text: &str) {
        if self.bar.is_hidden() {
            println!("  {:15} {text}", self.question.model);
        }
        self.bar.finish_with_message(text.to_owned());
    }
}
