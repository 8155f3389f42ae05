//! Custom resources with kubectl: define, explain, create, tables, validation, patches, clean-up.

use coracle_testkit::retry;

use crate::{MAIN, Story};

const DEFINITION: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: boats.harbour.example.com}
spec:
  group: harbour.example.com
  scope: Namespaced
  names: {kind: Boat, plural: boats, shortNames: [bo], categories: [all]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources:
      status: {}
      scale: {specReplicasPath: .spec.oars, statusReplicasPath: .status.oars}
    additionalPrinterColumns:
    - {name: Hull, type: string, jsonPath: .spec.hull}
    - {name: Oars, type: integer, jsonPath: .spec.oars}
    selectableFields: [{jsonPath: .spec.hull}]
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            required: [hull]
            properties:
              hull: {type: string, description: What the boat is made of., enum: [hide, wood]}
              oars: {type: integer, minimum: 0, default: 1}
          status: {type: object, x-kubernetes-preserve-unknown-fields: true}
"#;
const BOAT: &str = r#"
apiVersion: harbour.example.com/v1
kind: Boat
metadata: {name: coracle}
spec: {hull: hide}
"#;

pub fn run(story: &Story) {
    story.apply("boats.yaml", DEFINITION, &[]);
    story.kubectl("wait --for=condition=Established crd/boats.harbour.example.com --timeout=10s");
    story.apply("boat.yaml", BOAT, &["-n", "shop"]);
    let table = story.kubectl("get bo -n shop");
    assert_eq!(
        table.lines().map(|l| l.split_whitespace().collect::<Vec<_>>()).collect::<Vec<_>>(),
        [vec!["NAME", "HULL", "OARS"], vec!["coracle", "hide", "1"],]
    );
    let explained = story.kubectl("explain boats.spec.hull");
    assert!(explained.contains("What the boat is made of."), "{explained}");
    let bad = BOAT.replace("hide", "glass");
    let path = story.machine.file("bad.yaml", &bad).display().to_string();
    let refused = story.machine.kubectl(MAIN, &["apply", "-n", "shop", "-f", &path]).fails();
    let why = "spec.hull: Unsupported value: \"glass\": supported values: \"hide\", \"wood\"";
    assert!(refused.contains(why), "{refused}");
    story.kubectl("scale -n shop boats/coracle --replicas=3");
    assert_eq!(story.json("get boat coracle -n shop")["spec"]["oars"], 3);
    let chosen = story.kubectl("get boats -n shop --field-selector spec.hull=wood -o name");
    assert_eq!(chosen, "");
    let everything = story.kubectl("get all -n shop -o name");
    assert!(everything.contains("boat.harbour.example.com/coracle"), "{everything}");
    owned_objects(story);
    story.kubectl("delete crd boats.harbour.example.com --timeout=30s");
    let gone = story.machine.kubectl(MAIN, &["get", "boats", "-n", "shop"]).fails();
    // kubectl words it by what its discovery cache still says.
    let words =
        ["the server doesn't have a resource type \"boats\"", "could not find the requested resource"];
    assert!(words.iter().any(|w| gone.contains(w)), "{gone}");
}

/// Dependents of a custom resource are collected, and namespaces that hold some can be deleted.
fn owned_objects(story: &Story) {
    story.kubectl("create namespace harbour");
    story.apply("boat.yaml", BOAT, &["-n", "harbour"]);
    let uid = story.json("get boat coracle -n harbour")["metadata"]["uid"].as_str().unwrap_or("").to_owned();
    let crew = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: crew\n  ownerReferences:\n  - apiVersion: \
         harbour.example.com/v1\n    kind: Boat\n    name: coracle\n    uid: {uid}\n"
    );
    story.apply("crew.yaml", &crew, &["-n", "harbour"]);
    story.kubectl("delete boat coracle -n harbour");
    retry("the crew goes with its boat", 30, || {
        let left = story.kubectl("get configmap crew -n harbour --ignore-not-found -o name");
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
    story.apply("boat.yaml", BOAT, &["-n", "harbour"]);
    story.kubectl("delete namespace harbour --timeout=60s");
}
