//! Tests of encryption: what is stored, who can read it, and what bad configurations are told.

use super::*;

const A: &str = "c2VjcmV0IGlzIHNlY3VyZSwgSSB0aGluaywgb3Igbm8=";
const B: &str = "dGhpcyBpcyBwYXNzd29yZCBvZiAzMiBieXRlcyBsb24=";
const KEY: &str = "/registry/core/secrets/default/s";

fn file(resources: &str, providers: &str) -> String {
    format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: \
         {resources}\n  providers: {providers}\n"
    )
}

fn keys(kind: &str, keys: &[(&str, &str)]) -> String {
    let keys: Vec<String> = keys.iter().map(|(n, s)| format!("{{name: {n}, secret: \"{s}\"}}")).collect();
    format!("{{{kind}: {{keys: [{}]}}}}", keys.join(", "))
}

fn of(resources: &str, providers: &[String]) -> Arc<Encryption> {
    Encryption::new(&file(resources, &format!("[{}]", providers.join(", ")))).unwrap()
}

#[test]
fn every_cipher_opens_what_it_sealed_and_marks_it_as_upstream_does() {
    for kind in ["aesgcm", "aescbc", "secretbox"] {
        let encryption = of("[secrets]", &[keys(kind, &[("k1", A)])]);
        for value in ["", "a", "exactly sixteen!", "{\"data\":{\"p\":\"hunter2\"}}"] {
            let sealed = encryption.seal(KEY, value.as_bytes()).unwrap().unwrap();
            assert!(sealed.starts_with(format!("k8s:enc:{kind}:v1:k1:").as_bytes()));
            assert!(value.len() < 8 || !sealed.windows(value.len()).any(|w| w == value.as_bytes()));
            let opened = encryption.open(KEY, &sealed).unwrap();
            assert_eq!((opened.value, opened.stale), (Bytes::from(value), false), "{kind}");
            assert_ne!(
                encryption.seal(KEY, value.as_bytes()).unwrap().unwrap(),
                sealed,
                "a nonce of its own"
            );
        }
    }
    let short = of("[secrets]", &[keys("aesgcm", &[("k", "MTIzNDU2Nzg5MDEyMzQ1Ng==")])]);
    let sealed = short.seal(KEY, b"v").unwrap().unwrap();
    assert_eq!(short.open(KEY, &sealed).unwrap().value, "v", "keys of 16 bytes");
}

#[test]
fn what_was_changed_or_moved_does_not_open() {
    for kind in ["aesgcm", "secretbox"] {
        let encryption = of("[secrets]", &[keys(kind, &[("k1", A)])]);
        let mut sealed = encryption.seal(KEY, b"value").unwrap().unwrap().to_vec();
        if let Some(last) = sealed.last_mut() {
            *last ^= 1;
        }
        assert!(encryption.open(KEY, &sealed.into()).is_err(), "{kind}");
    }
    let encryption = of("[secrets]", &[keys("aesgcm", &[("k1", A)])]);
    let sealed = encryption.seal(KEY, b"value").unwrap().unwrap();
    let why = encryption.open("/registry/core/secrets/default/other", &sealed).unwrap_err();
    assert_eq!(why, "cipher: message authentication failed");
}

#[test]
fn keys_rotate_the_first_writes_and_all_read() {
    let old = of("[secrets]", &[keys("aesgcm", &[("k1", A)])]);
    let stored = old.seal(KEY, b"value").unwrap().unwrap();
    let both = of("[secrets]", &[keys("aesgcm", &[("k2", B), ("k1", A)])]);
    assert_eq!(both.open(KEY, &stored).unwrap(), Opened { value: "value".into(), stale: true });
    let fresh = both.seal(KEY, b"value").unwrap().unwrap();
    assert!(fresh.starts_with(b"k8s:enc:aesgcm:v1:k2:"));
    assert!(!both.open(KEY, &fresh).unwrap().stale);
    assert!(old.open(KEY, &fresh).is_err());
    old.replace(&file("[secrets]", &format!("[{}]", keys("secretbox", &[("k", A)])))).unwrap();
    assert_eq!(old.open(KEY, &stored).unwrap_err(), "no matching prefix found");
    assert!(old.replace("nonsense").is_err());
    assert!(old.seal(KEY, b"v").unwrap().unwrap().starts_with(b"k8s:enc:secretbox:v1:k:"), "what was stays");
}

#[test]
fn the_same_provider_twice_with_different_keys_is_tried_to_the_end() {
    let old = of("[secrets]", &[keys("aescbc", &[("1", A)])]);
    let stored = old.seal(KEY, b"value").unwrap().unwrap();
    let new = of("[secrets]", &[keys("aescbc", &[("2", B)]), keys("aescbc", &[("1", A)])]);
    assert_eq!(new.open(KEY, &stored).unwrap(), Opened { value: "value".into(), stale: true });
}

#[test]
fn identity_reads_what_is_plain_and_nothing_else() {
    let plain = Bytes::from_static(b"{}");
    let into = of("[secrets]", &[keys("aesgcm", &[("k", A)]), "{identity: {}}".into()]);
    assert_eq!(into.open(KEY, &plain).unwrap(), Opened { value: plain.clone(), stale: true });
    let sealed = into.seal(KEY, b"value").unwrap().unwrap();
    let away = of("[secrets]", &["{identity: {}}".into(), keys("aesgcm", &[("k", A)])]);
    assert_eq!(away.seal(KEY, b"value").unwrap(), None);
    assert_eq!(away.open(KEY, &sealed).unwrap(), Opened { value: "value".into(), stale: true });
    let without = of("[secrets]", &[keys("aesgcm", &[("k", A)])]);
    assert_eq!(without.open(KEY, &plain).unwrap_err(), "no matching prefix found");
    let other = "/registry/core/configmaps/default/s";
    assert!(!without.covers(other));
    assert_eq!(
        without.open(other, &sealed).unwrap_err(),
        "identity transformer tried to read encrypted data"
    );
}

#[test]
fn resources_are_named_by_group_and_the_narrowest_rule_counts() {
    let text = format!(
        "{}- resources: ['*.']\n  providers: [{{identity: {{}}}}]\n- resources: ['*.apps', '*.*']\n  providers: [{}]\n",
        file("[secrets, widgets.example.com]", &format!("[{}]", keys("aesgcm", &[("k", A)]))),
        keys("secretbox", &[("k", A)]),
    );
    // The two wildcards of one list would overlap.
    assert!(Encryption::new(&text).is_err());
    let encryption = Encryption::new(&text.replace("'*.apps', '*.*'", "'*.*'")).unwrap();
    let kind = |key: &str| {
        let sealed = encryption.seal(key, b"v").unwrap();
        sealed
            .map_or("plain".to_owned(), |s| String::from_utf8_lossy(&s).split(':').nth(2).unwrap().to_owned())
    };
    assert_eq!(kind("/registry/core/secrets/a/b"), "aesgcm");
    assert_eq!(kind("/registry/example.com/widgets/a/b"), "aesgcm");
    assert_eq!(kind("/registry/core/pods/a/b"), "plain");
    assert_eq!(kind("/registry/apps/deployments/a/b"), "secretbox");
}

#[track_caller]
fn refused(text: &str, want: &str) {
    let why = Encryption::new(text).unwrap_err();
    assert!(why.contains(want), "{why}");
    assert!(!why.contains(A), "{why}");
}

#[test]
fn bad_configurations_are_told_in_upstreams_words() {
    let gcm = |secret: &str| file("[secrets]", &format!("[{}]", keys("aesgcm", &[("k", secret)])));
    refused("", "file is empty");
    let none = "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\n";
    refused(none, "resources: Required value: at least one resources is required");
    refused(
        &file("[]", "[{identity: {}}]"),
        "resources[0].resources: Required value: at least one \
                                             resources[0].resources is required",
    );
    refused(&file("[secrets]", "[]"), "resources[0].providers: Required value");
    refused(
        &gcm(""),
        "resources[0].providers[0].aesgcm.keys[0].secret: Required value: secret is a mandatory field \
                       for a key",
    );
    refused(
        &gcm("AAAA"),
        "resources[0].providers[0].aesgcm.keys[0].secret: Invalid value: \"REDACTED\": secret is \
                           not of the expected length, got 3, expected one of [16 24 32]",
    );
    refused(&gcm("no base64"), "\"REDACTED\": secrets must be base64 encoded");
    refused(
        &file("[secrets]", "[{secretbox: {keys: []}}]"),
        "keys: Required value: at least one keys is required",
    );
    refused(&file("[secrets]", "[{}]"), "provider does not contain any of the expected providers");
    let two = format!("[{{identity: {{}}, aesgcm: {{keys: [{{name: k, secret: \"{A}\"}}]}}}}]");
    refused(&file("[secrets]", &two), "more than one provider specified in a single element");
    let identity = |resources: &str| file(resources, "[{identity: {}}]");
    refused(&identity("['*']"), "use '*.' to encrypt all the resources from core API group");
    refused(&identity("[Secrets]"), "resource name should not contain capital letters");
    refused(&identity("['secrets.*']"), "encrypting the same resource across groups is not supported");
    refused(&identity("[secrets, secrets]"), "the same resource cannot be specified multiple times");
    refused(&identity("[secrets, '*.']"), "using overlapping resources such as 'secrets' and '*.'");
    let masked = format!("{}- resources: [secrets]\n  providers: [{{identity: {{}}}}]\n", identity("['*.']"));
    refused(&masked, "resource \"secrets\" is masked by earlier rule \"*.\"");
    refused(&file("[secrets]", "[{rot13: {}}]"), "unknown field");
}
