//! One row of the report.

use serde_json::Value;

/// What a row is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// Starting and stopping workers, and waiting for events.
    Processes,
    /// Sharing addresses.
    Sharing,
    /// Measuring workers.
    Monitoring,
    /// Limits of the host and of this process.
    Limits,
    /// The log.
    Log,
}

impl Group {
    /// The word for it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Group::Processes => "processes",
            Group::Sharing => "sharing",
            Group::Monitoring => "monitoring",
            Group::Limits => "limits",
            Group::Log => "log",
        }
    }
}

/// The state of a feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Used in its best form.
    Ok,
    /// Another form is used, or a limit is too low.
    Degraded,
    /// The feature is not available.
    Missing,
    /// With these options the feature is not used.
    Unused,
    /// It could not be found out.
    Unknown,
}

impl State {
    /// The word for it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            State::Ok => "ok",
            State::Degraded => "degraded",
            State::Missing => "missing",
            State::Unused => "unused",
            State::Unknown => "unknown",
        }
    }

    /// Whether the report as a whole is degraded by it. What could not be found out is not promised to work.
    #[must_use]
    pub fn is_problem(self) -> bool {
        match self {
            State::Degraded | State::Missing | State::Unknown => true,
            State::Ok | State::Unused => false,
        }
    }
}

/// Why a feature is not used in its best form, and how to change that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The reason, and its effect.
    pub why: String,
    /// What to do.
    pub fix: Fix,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fix {
    /// In words.
    pub text: String,
    /// The command, if there is one that fits every host.
    pub command: Option<String>,
}

impl Fix {
    /// What no single command does.
    pub fn by_hand(text: impl Into<String>) -> Fix {
        Fix { text: text.into(), command: None }
    }

    /// A command, and what it does.
    pub fn command(text: impl Into<String>, command: impl Into<String>) -> Fix {
        Fix { text: text.into(), command: Some(command.into()) }
    }

    /// A newer kernel.
    pub fn kernel(version: &str) -> Fix {
        Fix::by_hand(format!("run Linux {version} or later"))
    }

    /// A kernel with this build option.
    pub fn kernel_with(version: &str, option: &str) -> Fix {
        Fix::by_hand(format!("run Linux {version} or later, built with {option}"))
    }
}

/// One row of the report.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// What it is about.
    pub group: Group,
    /// The name of the feature.
    pub check: &'static str,
    /// Its state.
    pub state: State,
    /// What is used.
    pub uses: String,
    /// Why it is not the best form.
    pub problem: Option<Problem>,
    /// The facts, by names that include their unit.
    pub values: Vec<(&'static str, Value)>,
}

impl Row {
    /// A row without a problem.
    pub fn ok(group: Group, check: &'static str, uses: impl Into<String>) -> Row {
        Row { group, check, state: State::Ok, uses: uses.into(), problem: None, values: Vec::new() }
    }

    /// A feature that these options do not use.
    pub fn unused(group: Group, check: &'static str, uses: impl Into<String>) -> Row {
        Row { state: State::Unused, ..Row::ok(group, check, uses) }
    }

    /// A feature that is used in another form than the best.
    pub fn degraded(
        group: Group,
        check: &'static str,
        uses: impl Into<String>,
        why: impl Into<String>,
        fix: Fix,
    ) -> Row {
        let problem = Some(Problem { why: why.into(), fix });
        Row { state: State::Degraded, problem, ..Row::ok(group, check, uses) }
    }

    /// A feature that is not available.
    pub fn missing(
        group: Group,
        check: &'static str,
        uses: impl Into<String>,
        why: impl Into<String>,
        fix: Fix,
    ) -> Row {
        Row { state: State::Missing, ..Row::degraded(group, check, uses, why, fix) }
    }

    /// A feature of which nothing could be found out.
    pub fn unknown(group: Group, check: &'static str, why: impl Into<String>, fix: Fix) -> Row {
        Row { state: State::Unknown, ..Row::degraded(group, check, "-", why, fix) }
    }

    /// Adds a fact.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<Value>) -> Row {
        self.values.push((name, value.into()));
        self
    }
}
