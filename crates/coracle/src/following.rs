//! What a file says, as long as it says it: a changed file takes effect without a restart, a broken one does not.

use std::future::Future;
use std::sync::Arc;

use async_trait::async_trait;
use coracle_auth::{
    Attributes, Authenticator, AuthnError, Authorizer, Credentials, Decision, NonResourceRule, ResourceRule,
    UserInfo,
};
use parking_lot::RwLock;

use crate::followed::{Followed, Refused};

/// A list that follows a file.
pub struct Reloading<T: ?Sized> {
    current: RwLock<Arc<[Arc<T>]>>,
}

impl<T: ?Sized + Send + Sync + 'static> Reloading<T> {
    /// Begins with `first`; `make` reads what the file says later: nothing when that means the same.
    pub fn follow<F>(
        followed: Followed,
        first: Vec<Arc<T>>,
        mut make: impl FnMut(String) -> F + Send + 'static,
    ) -> Arc<Self>
    where
        F: Future<Output = Result<Option<Vec<Arc<T>>>, Refused>> + Send + 'static,
    {
        let all = Arc::new(Self { current: RwLock::new(first.into()) });
        let weak = Arc::downgrade(&all);
        tokio::spawn(followed.run(move |text| {
            let (weak, made) = (weak.clone(), make(text));
            async move {
                let Some(made) = made.await? else { return Ok(false) };
                if let Some(all) = weak.upgrade() {
                    *all.current.write() = made.into();
                }
                Ok(true)
            }
        }));
        all
    }

    fn current(&self) -> Arc<[Arc<T>]> {
        self.current.read().clone()
    }
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
