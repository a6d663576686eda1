//! Which targets a command line asks for.

/// Options of criterion's that are followed by a value: what stands behind them is no target.
const WITH_VALUE: [&str; 17] = [
    "--save-baseline",
    "--baseline",
    "-b",
    "--baseline-lenient",
    "--load-baseline",
    "--sample-size",
    "--warm-up-time",
    "--measurement-time",
    "--nresamples",
    "--noise-threshold",
    "--confidence-level",
    "--significance-level",
    "--profile-time",
    "--color",
    "-c",
    "--plotting-backend",
    "--output-format",
];
/// With these criterion measures nothing new, and so do the targets.
const NOTHING_NEW: [&str; 2] = ["--profile-time", "--load-baseline"];

/// What shall be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Measure and report.
    Measure,
    /// One tiny verified pass.
    Test,
    /// Say what there is.
    List,
    /// Nothing: `cargo test --benches` asks for no benchmark.
    Nothing,
}

/// A command line, understood. Criterion's options are passed over, so that both parts of `cargo bench` take the same.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Choice {
    /// What shall be done.
    pub action: Action,
    words: Vec<String>,
}

impl Choice {
    /// Understands arguments: a number is a target, another word a part of a title.
    #[must_use]
    pub fn of(arguments: &[String]) -> Self {
        let has = |flag: &str| arguments.iter().any(|argument| argument.split('=').next() == Some(flag));
        let action = match (has("--bench"), has("--test"), has("--list")) {
            (_, true, _) => Action::Test,
            (true, _, true) => Action::List,
            (true, _, _) if !NOTHING_NEW.iter().any(|flag| has(flag)) => Action::Measure,
            _ => Action::Nothing,
        };
        let mut words = Vec::new();
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            if WITH_VALUE.contains(&argument.as_str()) {
                rest.next();
            } else if !argument.starts_with('-') {
                words.push(argument.clone());
            }
        }
        Self { action, words }
    }

    /// Whether a target with these numbers and this title is asked for; without any word all are.
    #[must_use]
    pub fn takes(&self, numbers: &[u8], title: &str) -> bool {
        let fits = |word: &String| match word.parse::<u8>() {
            Ok(number) => numbers.contains(&number),
            Err(_) => title.contains(word.as_str()),
        };
        self.words.is_empty() || self.words.iter().any(fits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(line: &str) -> Choice {
        Choice::of(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn numbers_and_words_choose() {
        let all = choice("--bench");
        assert!(all.takes(&[5], "group commit") && all.action == Action::Measure);
        let fifth = choice("5 --bench");
        assert!(fifth.takes(&[5], "group commit") && !fifth.takes(&[2, 3], "through the actors"));
        assert!(choice("3 --bench").takes(&[2, 3], "through the actors"));
        assert!(choice("commit --bench").takes(&[5], "group commit"));
        assert!(!choice("append_durable --bench").takes(&[5], "group commit"), "it speaks of the other part");
    }

    #[test]
    fn criterions_options_are_passed_over() {
        let line = choice("--bench --save-baseline before --sample-size 10 --noplot --measurement-time=5");
        assert!(line.takes(&[5], "group commit") && line.takes(&[10], "growth"));
        assert_eq!(line.action, Action::Measure);
        assert_eq!(choice("--bench --profile-time 5").action, Action::Nothing);
        assert_eq!(choice("--bench --load-baseline=x").action, Action::Nothing);
    }

    #[test]
    fn only_a_benchmark_measures() {
        assert_eq!(choice("").action, Action::Nothing);
        assert_eq!(choice("--bench --test").action, Action::Test);
        assert_eq!(choice("--bench --list").action, Action::List);
    }
}
