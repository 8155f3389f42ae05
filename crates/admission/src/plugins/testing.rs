//! What the plugins' tests share.

use std::sync::Arc;

use coracle_auth::UserInfo;
use coracle_meta::{Object, ObjectReader, Status};
use coracle_stdx::Clock;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

use crate::{Environment, Operation, Options, Plugin, Request};

/// What a plugin said: warnings, and notes by key.
pub(super) type Said = (Vec<String>, Vec<(String, String)>);

struct Fixed(Vec<Arc<dyn Object>>);

impl ObjectReader for Fixed {
    fn get(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Option<Arc<dyn Object>> {
        let all = self.list(group, resource, namespace);
        all.into_iter().find(|obj| obj.name() == name)
    }
    fn list(&self, group: &str, resource: &str, namespace: &str) -> Vec<Arc<dyn Object>> {
        let Some(def) = coracle_resources::find(group, resource) else { return Vec::new() };
        let fits = |obj: &Arc<dyn Object>| obj.gvk().kind == def.kind && obj.namespace() == namespace;
        self.0.iter().filter(|obj| fits(obj)).cloned().collect()
    }
}

/// A pod in the namespace `ns` with one container.
pub(super) fn pod(name: &str, change: impl FnOnce(&mut PodSpec)) -> Box<dyn Object> {
    let container = Container { name: "c".to_owned(), ..Container::default() };
    let mut spec = PodSpec { containers: vec![container], ..PodSpec::default() };
    change(&mut spec);
    let mut pod = Pod { spec: Some(spec), ..Pod::default() };
    pod.metadata.name = Some(name.to_owned());
    pod.metadata.namespace = Some("ns".to_owned());
    Box::new(pod)
}

/// Runs one plugin's mutating pass on the creation of a pod.
pub(super) fn admit(
    plugin: &dyn Plugin,
    objects: &[Arc<dyn Object>],
    object: &mut Box<dyn Object>,
) -> Result<(), Status> {
    admit_as(plugin, objects, &UserInfo::authenticated("jane", &[]), object)
}

/// As [`admit`], for a given user.
pub(super) fn admit_as(
    plugin: &dyn Plugin,
    objects: &[Arc<dyn Object>],
    user: &UserInfo,
    object: &mut Box<dyn Object>,
) -> Result<(), Status> {
    admit_of(plugin, objects, user, ("", "pods"), object)
}

/// As [`admit`], for an object of another resource: group and plural.
pub(super) fn admit_in(
    plugin: &dyn Plugin,
    objects: &[Arc<dyn Object>],
    resource: (&str, &str),
    object: &mut Box<dyn Object>,
) -> Result<(), Status> {
    admit_of(plugin, objects, &UserInfo::authenticated("jane", &[]), resource, object)
}

/// Runs one plugin's validating pass on the creation of a pod.
pub(super) fn validate(
    plugin: &dyn Plugin,
    objects: &[Arc<dyn Object>],
    object: &mut Box<dyn Object>,
) -> Result<(), Status> {
    run(Pass::Validate, plugin, objects, &UserInfo::authenticated("jane", &[]), ("", "pods"), object)
}

fn admit_of(
    plugin: &dyn Plugin,
    objects: &[Arc<dyn Object>],
    user: &UserInfo,
    resource: (&str, &str),
    object: &mut Box<dyn Object>,
) -> Result<(), Status> {
    run(Pass::Mutate, plugin, objects, user, resource, object)
}

enum Pass {
    Mutate,
    Validate,
}

fn run(
    pass: Pass,
    plugin: &dyn Plugin,
    objects: &[Arc<dyn Object>],
    user: &UserInfo,
    (group, plural): (&str, &str),
    object: &mut Box<dyn Object>,
) -> Result<(), Status> {
    let environment = Environment::new(Arc::new(Fixed(objects.to_vec())), Clock::system());
    run_in(&environment, pass, plugin, user, (group, plural), object).map(drop)
}

/// Runs both passes of a plugin inside a server; yields the warnings and notes.
pub(super) fn admit_inside(
    host: &Arc<dyn crate::Host>,
    plugin: &dyn Plugin,
    objects: &[Arc<dyn Object>],
    resource: (&str, &str),
    object: &mut Box<dyn Object>,
) -> Result<Said, Status> {
    let environment = Environment::new(Arc::new(Fixed(objects.to_vec())), Clock::system());
    let _ = environment.host.set(Arc::downgrade(host));
    let user = UserInfo::authenticated("jane", &[]);
    run_in(&environment, Pass::Mutate, plugin, &user, resource, object)
}

fn run_in(
    environment: &Environment,
    pass: Pass,
    plugin: &dyn Plugin,
    user: &UserInfo,
    (group, plural): (&str, &str),
    object: &mut Box<dyn Object>,
) -> Result<Said, Status> {
    let (name, options) = (object.name().to_owned(), Options::default());
    let mut request = Request {
        operation: Operation::Create,
        resource: coracle_resources::find(group, plural).expect("a resource that is served"),
        subresource: "",
        namespace: "ns",
        name: &name,
        user,
        object: Some(object),
        old: None,
        dry_run: false,
        warnings: Vec::new(),
        annotations: Vec::new(),
        options: &options,
        reinvocation: crate::Reinvocation::default(),
    };
    if !plugin.handles(&request) {
        return Ok((Vec::new(), Vec::new()));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    match pass {
        Pass::Mutate => runtime.block_on(plugin.mutate(environment, &mut request))?,
        Pass::Validate => runtime.block_on(plugin.validate(environment, &mut request))?,
    }
    Ok((request.warnings, request.annotations))
}
