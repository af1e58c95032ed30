//! `drystone plugin test`: test cases in the real host.

use std::path::Path;

use policy::harness::{Harness, Run};
use policy::json::fits;
use serde_json::{Value, json};

use super::suite::{Budget, Case, Setup, Suite};
use super::{about, read};
use crate::Failure;

/// Asks the component in `file` all cases of `cases` and prints a table.
pub fn command(file: &Path, cases: &Path) -> Result<(), Failure> {
    let harness = Harness::new(&read(file)?).map_err(|error| about(file, error))?;
    let suites = Suite::read_all(cases)?;
    println!("{:32} {:16} {:>12} {:>10}  verdict", "case", "hook", "instructions", "memory KiB");
    let (mut all, mut failed) = (0, 0);
    for suite in &suites {
        for case in &suite.cases {
            let outcome = Outcome::of(&harness, &suite.setup, case)?;
            outcome.print(case);
            all += 1;
            failed += usize::from(!outcome.faults.is_empty());
        }
    }
    println!("{} of {all} cases are ok", all - failed);
    if failed == 0 { Ok(()) } else { Err(about(file, format!("{failed} of {all} cases failed"))) }
}

struct Outcome {
    run: Run,
    /// The verdict, or the failure as cases write it.
    verdict: Value,
    faults: Vec<String>,
}

impl Outcome {
    /// Every case starts the plugin anew, so that no case depends on another.
    fn of(harness: &Harness, setup: &Setup, case: &Case) -> Result<Self, Failure> {
        let wrong = |error: &dyn std::fmt::Display| {
            Failure::Plugin(format!("case {:?}: {error}", case.name))
        };
        let config = case.config.as_ref().unwrap_or(&setup.config);
        let started = harness.start(&setup.allow, config).map_err(|error| wrong(&error))?;
        let run = started.ask(case.hook, &case.input()).map_err(|error| wrong(&error))?;
        let verdict = run.verdict.clone().unwrap_or_else(
            |failure| json!({ "failure": failure.kind(), "reason": failure.to_string() }),
        );
        let mut faults = over(&run, case.budget);
        if !fits(&case.expect, &verdict) {
            faults.insert(0, format!("expected {}", case.expect));
        }
        Ok(Self { run, verdict, faults })
    }

    fn print(&self, case: &Case) {
        let Run { fuel, memory_bytes, .. } = &self.run;
        let (hook, kib) = (case.hook.name(), memory_bytes / 1024);
        let word = if self.faults.is_empty() { "ok" } else { "FAIL" };
        println!(
            "{:32} {hook:16} {fuel:>12} {kib:>10}  {word} {}",
            case.name,
            short(&self.verdict)
        );
        self.faults.iter().for_each(|fault| println!("{:32} {fault}", ""));
    }
}

fn over(run: &Run, budget: Budget) -> Vec<String> {
    let kib = run.memory_bytes.div_ceil(1024);
    let fuel = budget.fuel.filter(|&most| run.fuel > most);
    let memory = budget.memory_kib.filter(|&most| kib > most);
    let fuel = fuel.map(|most| format!("{} instructions, {most} may be", run.fuel));
    fuel.into_iter().chain(memory.map(|most| format!("{kib} KiB, {most} may be"))).collect()
}

/// As much of a verdict as a line has room for.
pub fn short(verdict: &Value) -> String {
    const CHARS: usize = 120;
    let text = verdict.to_string();
    match text.char_indices().nth(CHARS) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_over_its_budget_says_by_what() {
        let run = Run { verdict: Ok(Value::Null), fuel: 100, memory_bytes: 65 << 10 };
        assert_eq!(over(&run, Budget { fuel: Some(100), memory_kib: Some(65) }), [""; 0]);
        let faults = over(&run, Budget { fuel: Some(99), memory_kib: Some(64) });
        assert_eq!(faults, ["100 instructions, 99 may be", "65 KiB, 64 may be"]);
    }

    #[test]
    fn a_long_verdict_is_cut_between_characters() {
        assert_eq!(short(&json!("é".repeat(200))).chars().count(), 123);
    }
}
