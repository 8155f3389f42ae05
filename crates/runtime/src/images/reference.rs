//! Image references in their full form, as Docker and containerd normalise them.

use super::digest::Digest;

/// A reference with registry and tag or digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reference {
    /// `docker.io`, `registry.example:5000`.
    pub registry: String,
    /// `library/busybox`.
    pub repository: String,
    /// `latest`; `None` if only a digest is given.
    pub tag: Option<String>,
    /// `sha256:…` or `sha512:…`.
    pub digest: Option<String>,
}

impl Reference {
    /// Reads a reference, short forms included.
    ///
    /// # Errors
    /// It is no reference; the text is kubelet's `InvalidImageName` cause.
    pub fn parse(text: &str) -> Result<Self, String> {
        let invalid = || format!("couldn't parse image name {text:?}: invalid reference format");
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                let (_, hex) = digest.split_once(':').ok_or_else(invalid)?;
                if hex.len() < 32 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
                    return Err(invalid());
                }
                Digest::parse(digest).map_err(|e| format!("couldn't parse image name {text:?}: {e}"))?;
                (rest, Some(digest.to_owned()))
            }
            None => (text, None),
        };
        let (registry, path) = match rest.split_once('/') {
            Some((first, path)) if first.contains(['.', ':']) || first == "localhost" => (first, path),
            _ => ("docker.io", rest),
        };
        let (repository, tag) = match path.rsplit_once(':') {
            Some((repository, tag)) => (repository, Some(tag.to_owned())),
            None => (path, None),
        };
        let part = |p: &str| {
            let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
            edge(p.bytes().next())
                && edge(p.bytes().last())
                && p.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b))
        };
        let tag_ok = tag.as_ref().is_none_or(|t| {
            (1..=128).contains(&t.len())
                && t.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
                && !t.starts_with(['.', '-'])
        });
        let registry_ok = !registry.is_empty()
            && registry.bytes().all(|b| b.is_ascii_alphanumeric() || b".-:[]_".contains(&b));
        if !repository.split('/').all(part) || !tag_ok || !registry_ok {
            return Err(invalid());
        }
        let registry = if registry == "index.docker.io" { "docker.io" } else { registry };
        let repository = if registry == "docker.io" && !repository.contains('/') {
            format!("library/{repository}")
        } else {
            repository.to_owned()
        };
        let tag = tag.or_else(|| digest.is_none().then(|| "latest".to_owned()));
        Ok(Self { registry: registry.to_owned(), repository, tag, digest })
    }
    /// `registry/repository`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }
    /// `registry/repository:tag`, if there is a tag.
    pub fn tagged(&self) -> Option<String> {
        self.tag.as_ref().map(|t| format!("{}:{t}", self.name()))
    }
    /// `registry/repository@sha256:…`, if there is a digest.
    pub fn digested(&self) -> Option<String> {
        self.digest.as_ref().map(|d| format!("{}@{d}", self.name()))
    }
    /// Whether the registry is this machine, where plain HTTP is acceptable.
    pub fn is_local(&self) -> bool {
        let host = self.registry.rsplit_once(':').map_or(self.registry.as_str(), |(h, _)| h);
        matches!(host, "localhost" | "[::1]") || host.starts_with("127.")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(short: &str, full: &str) {
        let reference = Reference::parse(short).unwrap();
        assert_eq!(reference.digested().or(reference.tagged()).unwrap(), full);
    }

    #[test]
    fn short_names_get_registry_library_and_latest() {
        check("busybox", "docker.io/library/busybox:latest");
        check("busybox:1.36", "docker.io/library/busybox:1.36");
        check("me/app", "docker.io/me/app:latest");
        check("localhost/app", "localhost/app:latest");
        check("127.0.0.1:5000/a/b:v1", "127.0.0.1:5000/a/b:v1");
        check("coracle.local/self", "coracle.local/self:latest");
        let digest = format!("sha256:{}", "a".repeat(64));
        check(&format!("busybox:1@{digest}"), &format!("docker.io/library/busybox@{digest}"));
        let digest = format!("sha512:{}", "a".repeat(128));
        check(&format!("busybox@{digest}"), &format!("docker.io/library/busybox@{digest}"));
    }

    #[test]
    fn malformed_names_are_refused() {
        for bad in ["", "UPPER", "a b", "x@sha256:short", "a//b", "a:", "-x"] {
            let why = Reference::parse(bad).unwrap_err();
            assert_eq!(why, format!("couldn't parse image name {bad:?}: invalid reference format"));
        }
        let unknown = format!("x@md5:{}", "a".repeat(32));
        let why = Reference::parse(&unknown).unwrap_err();
        assert_eq!(why, format!("couldn't parse image name {unknown:?}: unsupported digest algorithm"));
    }

    #[test]
    fn only_loopback_registries_are_local() {
        assert!(Reference::parse("127.0.0.1:5000/a").unwrap().is_local());
        assert!(Reference::parse("localhost:5000/a").unwrap().is_local());
        assert!(!Reference::parse("registry.example/a").unwrap().is_local());
    }
}
