//! What a file says, as long as it says it: a changed file takes effect without a restart, a broken one does not.

use std::path::PathBuf;
use std::sync::{Arc, Weak};

use async_trait::async_trait;
use coracle_auth::{
    Attributes, Authenticator, AuthnError, Authorizer, Credentials, Decision, NonResourceRule, ResourceRule,
    UserInfo,
};
use parking_lot::RwLock;

/// A list that follows a file.
pub struct Reloading<T: ?Sized> {
    current: RwLock<Arc<[Arc<T>]>>,
}

impl<T: ?Sized + Send + Sync + 'static> Reloading<T> {
    /// Begins with `first`; `make` reads what the file says later.
    pub fn follow(
        path: PathBuf,
        first: Vec<Arc<T>>,
        make: impl Fn(&str) -> Result<Vec<Arc<T>>, String> + Send + 'static,
    ) -> Arc<Self> {
        let all = Arc::new(Self { current: RwLock::new(first.into()) });
        tokio::spawn(renew(Arc::downgrade(&all), path, make));
        all
    }

    fn current(&self) -> Arc<[Arc<T>]> {
        self.current.read().clone()
    }
}

/// Takes up what the file says whenever it changes.
async fn renew<T: ?Sized + Send + Sync + 'static>(
    all: Weak<Reloading<T>>,
    path: PathBuf,
    make: impl Fn(&str) -> Result<Vec<Arc<T>>, String> + Send + 'static,
) {
    crate::reload::follow(vec![path.clone()], move || {
        let text = std::fs::read_to_string(&path).map_err(|e| e.to_string());
        match (all.upgrade(), text.and_then(|text| make(&text))) {
            (Some(all), Ok(made)) => {
                tracing::info!(path = %path.display(), "reloaded");
                *all.current.write() = made.into();
            }
            (Some(_), Err(why)) => {
                tracing::error!(path = %path.display(), why, "cannot be used; what was read stays");
            }
            (None, _) => {}
        }
        std::future::ready(())
    })
    .await;
}

#[async_trait]
impl Authenticator for Reloading<dyn Authenticator> {
    async fn authenticate(&self, credentials: &Credentials) -> Result<Option<UserInfo>, AuthnError> {
        let mut refused = None;
        for authenticator in &*self.current() {
            match authenticator.authenticate(credentials).await {
                Ok(None) => {}
                Ok(user) => return Ok(user),
                Err(e) => refused = refused.or(Some(e)),
            }
        }
        refused.map_or(Ok(None), Err)
    }

    async fn review(
        &self,
        token: &str,
        wanted: &[String],
        own: &[String],
    ) -> Result<Option<(UserInfo, Vec<String>)>, AuthnError> {
        let mut refused = None;
        for authenticator in &*self.current() {
            match authenticator.review(token, wanted, own).await {
                Ok(None) => {}
                Ok(user) => return Ok(user),
                Err(e) => refused = refused.or(Some(e)),
            }
        }
        refused.map_or(Ok(None), Err)
    }
}

#[async_trait]
impl Authorizer for Reloading<dyn Authorizer> {
    fn authorize(&self, attributes: &Attributes) -> (Decision, String) {
        coracle_auth::authorize(&self.current(), attributes)
    }

    fn is_remote(&self) -> bool {
        self.current().iter().any(|a| a.is_remote())
    }

    async fn ask(&self, attributes: &Attributes) -> (Decision, String) {
        coracle_auth::ask(&self.current(), attributes).await
    }

    fn rules_for(&self, user: &UserInfo, namespace: &str) -> (Vec<ResourceRule>, Vec<NonResourceRule>, bool) {
        let (mut resources, mut paths, mut incomplete) = (Vec::new(), Vec::new(), false);
        for authorizer in &*self.current() {
            let (more, further, partial) = authorizer.rules_for(user, namespace);
            resources.extend(more);
            paths.extend(further);
            incomplete |= partial;
        }
        (resources, paths, incomplete)
    }
}
