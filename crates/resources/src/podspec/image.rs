//! Image references: just enough to know the tag.

use std::sync::LazyLock;

use regex::Regex;

/// `name[:tag][@digest]`, as the distribution project defines references.
static REFERENCE: LazyLock<Option<Regex>> = LazyLock::new(|| {
    let host = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])";
    let domain = format!(r"(?:{host}(?:\.{host})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?");
    let part = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*";
    let tag = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}";
    let digest = r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}";
    let pattern = format!(r"^(?:{domain}/)?{part}(?:/{part})*(?::(?P<tag>{tag}))?(?P<digest>@{digest})?$");
    Regex::new(&pattern).ok()
});

/// Upstream's default pull policy: `Always` for the tag `latest` (given or implied), else `IfNotPresent`.
pub(crate) fn default_pull_policy(image: &str) -> &'static str {
    let latest = REFERENCE.as_ref().and_then(|r| r.captures(image)).is_some_and(|found| {
        match (found.name("tag"), found.name("digest")) {
            (Some(tag), _) => tag.as_str() == "latest",
            (None, digest) => digest.is_none(),
        }
    });
    if latest { "Always" } else { "IfNotPresent" }
}

#[cfg(test)]
mod tests {
    use super::default_pull_policy;

    #[test]
    fn pull_policy_follows_the_tag() {
        for (image, policy) in [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("registry:5000/a/b", "Always"),
            ("registry:5000/a/b:1", "IfNotPresent"),
            ("coracle.local/self", "Always"),
            ("nginx@sha256:0123456789012345678901234567890123456789012345678901234567890123", "IfNotPresent"),
            ("UPPER", "IfNotPresent"),
            ("", "IfNotPresent"),
        ] {
            assert_eq!(default_pull_policy(image), policy, "{image}");
        }
    }
}
