//! What validation found, and how it is told.

use coracle_meta::field::{Error, ErrorKind, ErrorList, Path};
use serde_json::Value;

/// What is wrong, as far as the telling differs.
#[derive(Clone, Debug)]
pub(super) enum What {
    /// Of another type: what it is.
    Type(Value),
    Required,
    /// The value and those allowed.
    Enum(Value, Vec<Value>),
    /// The most characters.
    TooLong(i64),
    /// How many there are, and the most there may be.
    TooMany(i64, i64),
    /// The offending value.
    Value(Value),
    /// No field is to blame.
    Loose,
}

/// One fault.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    /// In full.
    pub(super) message: String,
    /// Where, relative to the value validated.
    pub(super) path: String,
    pub(super) what: What,
}

impl Fault {
    /// A fault that names its place itself.
    pub(super) fn loose(message: String) -> Self {
        Self { message, path: String::new(), what: What::Loose }
    }
}

/// The faults found, and how many checks passed (which tells the best of several failures).
#[derive(Clone, Debug, Default)]
pub(super) struct Outcome {
    faults: Vec<Fault>,
    passed: usize,
}

impl Outcome {
    pub(super) fn of(fault: Fault) -> Self {
        Self { faults: vec![fault], passed: 0 }
    }

    pub(super) fn is_valid(&self) -> bool {
        self.faults.is_empty()
    }

    pub(super) fn matches(&self) -> usize {
        self.passed
    }

    pub(super) fn count(&mut self) {
        self.passed += 1;
    }

    /// Adds a fault, unless it was told already.
    pub(super) fn add(&mut self, fault: Fault) {
        if self.faults.iter().all(|f| f.message != fault.message) {
            self.faults.push(fault);
        }
    }

    pub(super) fn merge(&mut self, other: Self) {
        self.passed += other.passed;
        if self.faults.is_empty() {
            self.faults = other.faults;
        } else {
            other.faults.into_iter().for_each(|f| self.add(f));
        }
    }

    /// Merges the result of one validator.
    pub(super) fn step(&mut self, other: Self) {
        self.merge(other);
        self.count();
    }

    /// Nothing counts: the value was like that before.
    pub(super) fn forgive(&mut self) {
        self.faults.clear();
    }

    /// Tells the faults of a value that stands at `at`.
    pub(super) fn report(self, at: &Path, errs: &mut ErrorList) {
        for fault in self.faults {
            let place = match fault.path.as_str() {
                "" | "." => at.clone(),
                path => at.child(path.strip_prefix('.').unwrap_or(path)),
            };
            let message = fault.message;
            match fault.what {
                What::Type(value) => errs.type_invalid(place, value, message),
                What::Required => errs.required(place, ""),
                What::Enum(value, allowed) => {
                    let texts =
                        allowed.iter().map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned));
                    let texts: Vec<String> = texts.collect();
                    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
                    errs.not_supported(place, value, &texts);
                }
                What::TooLong(max) => errs.too_long(place, usize::try_from(max).unwrap_or(0)),
                What::TooMany(actual, max) => {
                    let size = |n: i64| usize::try_from(n).unwrap_or(0);
                    errs.too_many(place, size(actual), size(max));
                }
                What::Value(value) => errs.invalid(place, value, message),
                What::Loose => errs.push(Error {
                    kind: ErrorKind::Invalid,
                    path: at.to_string(),
                    value: Some("\"\"".into()),
                    detail: message,
                }),
            }
        }
    }
}
