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

/// Most characters of a repository, without the registry in front of it.
const LONGEST_REPOSITORY: usize = 255;

/// The id of an image is no name of one.
fn is_identifier(image: &str) -> bool {
    image.len() == 64 && image.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Characters of a name behind its registry; names without a slash are in `library/` of Docker's.
fn repository_length(name: &str) -> usize {
    let is_registry = |part: &str| {
        part == "localhost" || part.contains(['.', ':']) || part.bytes().any(|b| b.is_ascii_uppercase())
    };
    match name.split_once('/') {
        Some((registry, rest)) if is_registry(registry) => rest.len(),
        Some(_) => name.len(),
        None => "library/".len() + name.len(),
    }
}

/// Upstream's default pull policy: `Always` for the tag `latest` (given or implied), else `IfNotPresent`.
pub(crate) fn default_pull_policy(image: &str) -> &'static str {
    let found = REFERENCE.as_ref().and_then(|r| r.captures(image));
    let latest = found.filter(|_| !is_identifier(image)).is_some_and(|found| {
        let end = [found.name("tag").map(|tag| tag.start() - 1), found.name("digest").map(|d| d.start())];
        let name = &image[..end.into_iter().flatten().min().unwrap_or(image.len())];
        if repository_length(name) > LONGEST_REPOSITORY {
            return false;
        }
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
            ("a".repeat(64).as_str(), "IfNotPresent"),
            ("a".repeat(65).as_str(), "Always"),
            ("z".repeat(248).as_str(), "IfNotPresent"),
            (format!("example.com/{}", "z".repeat(255)).as_str(), "Always"),
            ("", "IfNotPresent"),
        ] {
            assert_eq!(default_pull_policy(image), policy, "{image}");
        }
    }
}
