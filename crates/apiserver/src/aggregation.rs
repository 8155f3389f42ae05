//! Aggregation: groups and versions that another server answers, as APIServices say.
//!
//! [`watch::run`] follows APIServices, Services and their endpoints. It keeps the routes, says in each APIService
//! whether its server is available, and learns what that server serves; requests, discovery and OpenAPI only read
//! what it has found.

mod availability;
mod discovery;
mod learn;
mod link;
mod openapi;
mod proxy;
mod watch;

use std::collections::BTreeMap;
use std::sync::Arc;

use coracle_meta::{Object, ObjectReader};
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use parking_lot::RwLock;

pub(crate) use discovery::{aggregated, group, groups};
pub(crate) use openapi::{index as openapi_index, merge as openapi_v2, routed as openapi_routed};
pub(crate) use proxy::{handle, read};
pub(crate) use watch::run;

use crate::config::Tls;
use learn::Learned;
use link::Link;

const GROUP: &str = "apiregistration.k8s.io";
const PLURAL: &str = "apiservices";

/// What is known of extension servers.
pub(crate) struct Aggregation {
    routes: RwLock<Arc<Routes>>,
    /// The certificate that shows extension servers that it is this server that asks.
    identity: Option<Tls>,
}

/// Which group and version goes to which extension server, at one moment.
#[derive(Default)]
pub(crate) struct Routes {
    all: BTreeMap<(String, String), Arc<Extension>>,
    /// Changes with the routes and with what has been learned behind them.
    pub(crate) generation: u64,
}

/// A group and version that another server answers.
pub(crate) struct Extension {
    /// Of the APIService.
    name: String,
    group: String,
    version: String,
    /// Whether the APIService says that the server is available.
    available: bool,
    link: Arc<Link>,
    learned: Arc<RwLock<Learned>>,
}

impl Aggregation {
    /// No routes yet.
    pub(crate) fn new(identity: Option<Tls>) -> Self {
        Self { routes: RwLock::default(), identity }
    }

    /// The routes as they are now.
    pub(crate) fn routes(&self) -> Arc<Routes> {
        self.routes.read().clone()
    }

    /// The server that answers a group and version, if it is another one.
    pub(crate) fn route(&self, group: &str, version: &str) -> Option<Arc<Extension>> {
        let routes = self.routes.read();
        if routes.all.is_empty() || group.is_empty() {
            return None;
        }
        routes.all.get(&(group.to_owned(), version.to_owned())).cloned()
    }

    /// Makes the routes those of the APIServices given; what stays keeps its connections and what was learned.
    fn follow<'a>(&self, services: impl Iterator<Item = &'a APIService>) {
        let before = self.routes();
        let mut all = BTreeMap::new();
        for service in services {
            let Some(spec) = &service.spec else { continue };
            let (group, version) = (spec.group.clone().unwrap_or_default(), spec.version.clone());
            let key = (group, version.unwrap_or_default());
            let known = before.all.get(&key);
            let Some(link) = Link::of(spec, self.identity.as_ref(), known.map(|e| &e.link)) else { continue };
            let learned = known.filter(|e| Arc::ptr_eq(&e.link, &link)).map(|e| e.learned.clone());
            let extension = Extension {
                name: service.metadata.name.clone().unwrap_or_default(),
                group: key.0.clone(),
                version: key.1.clone(),
                available: availability::is_available(service),
                link,
                learned: learned.unwrap_or_default(),
            };
            all.insert(key, Arc::new(extension));
        }
        *self.routes.write() = Arc::new(Routes { all, generation: before.generation + 1 });
    }

    /// Notes that something has been learned.
    fn learned(&self) {
        let mut routes = self.routes.write();
        let (all, generation) = (routes.all.clone(), routes.generation + 1);
        *routes = Arc::new(Routes { all, generation });
    }
}

impl Routes {
    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Whether another server answers a version of the group.
    pub(crate) fn has_group(&self, group: &str) -> bool {
        self.all.keys().any(|(of, _)| of == group)
    }

    /// All routes.
    pub(crate) fn extensions(&self) -> impl Iterator<Item = &Arc<Extension>> {
        self.all.values()
    }
}

/// All APIServices.
fn api_services(reader: &dyn ObjectReader) -> Vec<Arc<APIService>> {
    let objects = reader.list(GROUP, PLURAL, "").into_iter();
    objects.filter_map(|obj: Arc<dyn Object>| obj.into_any_arc().downcast().ok()).collect()
}
