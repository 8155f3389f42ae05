//! Manifests with mistakes.

use coracle_testkit::Machine;

use crate::MAIN;

const TYPO: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: { name: typo }
spec:
  replica: 3
  replicas: 0
  selector: { matchLabels: { a: b } }
  template:
    metadata: { labels: { a: b } }
    spec:
      containers: [{ name: c, image: x, imagee: y }]
"#;

pub fn with_unknown_fields(machine: &Machine) {
    let path = machine.file("typo.yaml", TYPO).display().to_string();
    let apply = |extra: &[&str]| machine.kubectl(MAIN, &[&["apply", "-f", &path], extra].concat());
    let strict = "strict decoding error: unknown field \"spec.replica\", \
                  unknown field \"spec.template.spec.containers[0].imagee\"";
    for extra in [&[][..], &["--validate=strict"]] {
        let said = apply(extra).fails();
        assert!(said.contains("Error from server (BadRequest)") && said.contains(strict), "{said}");
    }
    let said = apply(&["--server-side"]).fails();
    assert!(said.contains(".spec.replica: field not declared in schema"), "{said}");
    assert!(machine.kubectl(MAIN, &["get", "deploy", "typo"]).fails().contains("not found"), "nothing made");
    let warned = apply(&["--validate=warn"]);
    assert!(warned.stderr.contains("Warning: unknown field \"spec.replica\""), "{warned:?}");
    warned.ok();
    let ignored = apply(&["--validate=ignore"]);
    assert!(!ignored.stderr.contains("unknown field"), "{ignored:?}");
    ignored.ok();
    machine.kubectl(MAIN, &["delete", "deploy", "typo"]).ok();

    let invalid =
        TYPO.replace("  replica: 3\n", "").replace(", imagee: y", "").replace("{ a: b } }", "{ a: c } }");
    let invalid = invalid.replacen("{ a: c } }", "{ a: b } }", 1);
    let path = machine.file("invalid.yaml", &invalid).display().to_string();
    let said = machine.kubectl(MAIN, &["apply", "-f", &path]).fails();
    assert!(
        said.contains("is invalid: spec.template.metadata.labels") && said.contains("selector"),
        "{said}"
    );
    for (name, text, words) in [
        ("yaml", "kind: [ConfigMap\n", "error parsing"),
        ("kindless", "apiVersion: v1\nmetadata: { name: x }\n", "kind"),
        ("group", "apiVersion: nope.example/v1\nkind: Thing\nmetadata: { name: x }\n", "no matches for kind"),
    ] {
        let path = machine.file(&format!("{name}.yaml"), text).display().to_string();
        let said = machine.kubectl(MAIN, &["apply", "--validate=ignore", "-f", &path]).fails();
        assert!(said.contains(words), "{name}: {said}");
    }
}
