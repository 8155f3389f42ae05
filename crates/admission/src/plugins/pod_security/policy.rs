//! Levels, versions and modes of Pod Security, as the labels of a namespace name them.

use std::collections::BTreeMap;
use std::fmt;

use coracle_meta::field::{ErrorList, Path};

/// How much a policy allows, from lax to strict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    Privileged,
    Baseline,
    Restricted,
}

/// The version of the checks: `v1.<minor>`, or the latest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    Minor(u32),
    Latest,
}

/// A level at a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LevelVersion {
    pub(super) level: Level,
    pub(super) version: Version,
}

/// The three modes of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Policy {
    pub(super) enforce: LevelVersion,
    pub(super) audit: LevelVersion,
    pub(super) warn: LevelVersion,
}

impl fmt::Display for LevelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Privileged => "privileged",
            Level::Baseline => "baseline",
            Level::Restricted => "restricted",
        };
        match self.version {
            Version::Minor(minor) => write!(f, "{level}:v1.{minor}"),
            Version::Latest => write!(f, "{level}:latest"),
        }
    }
}

impl Policy {
    /// What holds where no label says otherwise.
    const DEFAULT: Self = {
        let none = LevelVersion { level: Level::Privileged, version: Version::Latest };
        Self { enforce: none, audit: none, warn: none }
    };

    /// Whether no mode checks anything.
    pub(super) fn is_privileged(&self) -> bool {
        [self.enforce, self.audit, self.warn].iter().all(|mode| mode.level == Level::Privileged)
    }

    /// The policy of a namespace by its labels, with what is wrong with them. A wrong enforce label is taken for
    /// the strictest, a wrong one of the others for the laxest.
    pub(super) fn of(labels: Option<&BTreeMap<String, String>>) -> (Self, ErrorList) {
        let (mut policy, mut errs) = (Self::DEFAULT, ErrorList::new());
        let label = |mode: &str| labels.and_then(|l| l.get(&format!("pod-security.kubernetes.io/{mode}")));
        let mut read = |mode: &str, slot: &mut LevelVersion, otherwise: Level| {
            let level = label(mode).map(|text| match text.as_str() {
                "privileged" => Some(Level::Privileged),
                "baseline" => Some(Level::Baseline),
                "restricted" => Some(Level::Restricted),
                _ => {
                    let why = "must be one of privileged, baseline, restricted";
                    errs.invalid(path(mode), text.as_str(), why);
                    None
                }
            });
            if let Some(level) = level {
                slot.level = level.unwrap_or(otherwise);
            }
            let key = format!("{mode}-version");
            let version = label(&key);
            if let Some(text) = version {
                slot.version = parse_version(text).unwrap_or_else(|| {
                    errs.invalid(path(&key), text.as_str(), "must be \"latest\" or \"v1.x\"");
                    Version::Latest
                });
            }
            (level, version.is_some())
        };
        let (enforce, _) = read("enforce", &mut policy.enforce, Level::Restricted);
        read("audit", &mut policy.audit, Level::Privileged);
        let (warn, warn_version) = read("warn", &mut policy.warn, Level::Privileged);
        // Who enforces is also warned.
        if warn.is_none() && matches!(enforce, Some(Some(level)) if level > policy.warn.level) {
            policy.warn.level = policy.enforce.level;
            if !warn_version {
                policy.warn.version = policy.enforce.version;
            }
        }
        (policy, errs)
    }
}

fn path(mode: &str) -> Path {
    Path::new("metadata").child("labels").key(&format!("pod-security.kubernetes.io/{mode}"))
}

fn parse_version(text: &str) -> Option<Version> {
    if text == "latest" {
        return Some(Version::Latest);
    }
    let digits = text.strip_prefix("v1.")?;
    let plain = digits.bytes().all(|b| b.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0'));
    if plain { digits.parse().ok().map(Version::Minor) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(labels: &[(&str, &str)]) -> (String, String, String, usize) {
        let labels =
            labels.iter().map(|(mode, v)| (format!("pod-security.kubernetes.io/{mode}"), (*v).to_owned()));
        let (policy, errs) = Policy::of(Some(&labels.collect()));
        (policy.enforce.to_string(), policy.audit.to_string(), policy.warn.to_string(), errs.len())
    }

    #[test]
    fn enforced_level_is_also_warned_of_unless_a_label_says_otherwise() {
        let got = policy(&[("enforce", "baseline"), ("enforce-version", "v1.20")]);
        assert_eq!(got, ("baseline:v1.20".into(), "privileged:latest".into(), "baseline:v1.20".into(), 0));
        let got = policy(&[("enforce", "baseline"), ("warn", "privileged")]);
        assert_eq!(got.2, "privileged:latest");
    }

    #[test]
    fn wrong_labels_fail_closed_for_enforce_and_open_for_the_rest() {
        let got = policy(&[("enforce", "x"), ("audit", "y"), ("warn-version", "v1.01")]);
        assert_eq!(
            got,
            ("restricted:latest".into(), "privileged:latest".into(), "privileged:latest".into(), 3)
        );
    }
}
