//! Tokens of service accounts that are kept in Secrets of type `kubernetes.io/service-account-token`: fills in what
//! such a Secret lacks, and removes it with its account.

use std::sync::Arc;

use async_trait::async_trait;
use coracle_client::{Api, Change, DeleteOptions, Index, Informer, ListOptions};
use coracle_meta::{Reason, Status};
use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};

use crate::runtime::{
    Action, Context, Controller, Descriptor, ObjectKey, Reconciler, ignore_not_found, name_of, uid_of,
};

pub(crate) const DESCRIPTOR: Descriptor = Descriptor { name: "tokens-controller", workers: 5 };

const KIND: &str = "kubernetes.io/service-account-token";
const NAME: &str = "kubernetes.io/service-account.name";
const UID: &str = "kubernetes.io/service-account.uid";

/// Signs tokens without an end.
pub trait TokenSigner: Send + Sync + 'static {
    /// A token for an account (namespace, name, uid) that the Secret `secret` of its namespace is to hold.
    fn sign(&self, namespace: &str, account: &str, uid: &str, secret: &str) -> String;
}

/// Starts the controller. Its keys are Secrets.
pub(crate) fn run(cx: &Context) -> BoxFuture<'static, ()> {
    let Some(signer) = cx.config.token_signer.clone() else {
        // Without the key there is nothing to do.
        return std::future::pending().boxed();
    };
    let only = ListOptions { field_selector: format!("type={KIND}"), ..ListOptions::default() };
    let secrets = cx.informers.filtered::<Secret>("", only);
    let accounts = cx.informers.get::<ServiceAccount>();
    // Upstream's has no service account of its own: it makes those of others.
    let client = cx.client("informers");
    let by_account = secrets.index("account", keys_of);
    let reconciler = Arc::new(Tokens {
        secrets: secrets.clone(),
        accounts: accounts.clone(),
        secret_api: client.api(),
        account_api: client.api(),
        root_ca: cx.config.root_ca_pem.clone().into_bytes(),
        signer,
    });
    Controller::new(DESCRIPTOR)
        .watch_primary(&secrets)
        .watch(&accounts, move |change, enqueue| wake(&by_account, change, enqueue))
        .run(reconciler)
        .boxed()
}

fn wake(secrets: &Index<Secret>, change: &Change<ServiceAccount>, enqueue: crate::runtime::Enqueue<'_>) {
    // What changes on an account does not matter: its coming and going does.
    if matches!(change, Change::Modified { old, new } if old.metadata.uid == new.metadata.uid) {
        return;
    }
    let account = &change.object().metadata;
    let key = ObjectKey::of(account).to_string();
    secrets.get(&key).iter().for_each(|secret| enqueue(ObjectKey::of(&secret.metadata)));
}

fn annotation<'a>(secret: &'a Secret, key: &str) -> &'a str {
    secret.metadata.annotations.as_ref().and_then(|all| all.get(key)).map_or("", String::as_str)
}

/// `namespace/account`.
fn keys_of(secret: &Secret) -> Vec<String> {
    let namespace = secret.metadata.namespace.as_deref().unwrap_or("");
    vec![format!("{namespace}/{}", annotation(secret, NAME))]
}

/// The Secret with what it lacks; `None` when it lacks nothing.
fn filled(
    secret: &Secret,
    account: &ServiceAccount,
    root_ca: &[u8],
    signer: &dyn TokenSigner,
) -> Option<Secret> {
    let namespace = secret.metadata.namespace.as_deref().unwrap_or("");
    let has = |key: &str| secret.data.as_ref().and_then(|data| data.get(key)).filter(|v| !v.0.is_empty());
    let lacks_ca = !root_ca.is_empty() && has("ca.crt").is_none_or(|ca| ca.0 != root_ca);
    let (lacks_namespace, lacks_token) = (has("namespace").is_none(), has("token").is_none());
    if !lacks_ca && !lacks_namespace && !lacks_token {
        return None;
    }
    let mut new = secret.clone();
    let data = new.data.get_or_insert_default();
    if lacks_ca {
        data.insert("ca.crt".to_owned(), ByteString(root_ca.to_vec()));
    }
    if lacks_namespace {
        data.insert("namespace".to_owned(), ByteString(namespace.as_bytes().to_vec()));
    }
    if lacks_token {
        let token = signer.sign(namespace, name_of(account), uid_of(account), name_of(secret));
        data.insert("token".to_owned(), ByteString(token.into_bytes()));
    }
    let annotations = new.metadata.annotations.get_or_insert_default();
    annotations.insert(NAME.to_owned(), name_of(account).to_owned());
    annotations.insert(UID.to_owned(), uid_of(account).to_owned());
    Some(new)
}

struct Tokens {
    secrets: Informer<Secret>,
    accounts: Informer<ServiceAccount>,
    secret_api: Api<Secret>,
    account_api: Api<ServiceAccount>,
    root_ca: Vec<u8>,
    signer: Arc<dyn TokenSigner>,
}

impl Tokens {
    /// The account that a Secret names, if it is (still) that one. The API's word counts where the informer knows
    /// none.
    async fn account(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
    ) -> Result<Option<Arc<ServiceAccount>>, Status> {
        let is = |account: &Arc<ServiceAccount>| uid.is_empty() || uid_of(&**account) == uid;
        if let Some(known) = self.accounts.get(namespace, name).filter(is) {
            return Ok(Some(known));
        }
        match self.account_api.get(namespace, name).await {
            Err(status) if status.reason() == Reason::NotFound => Ok(None),
            found => Ok(Some(found?).filter(is)),
        }
    }
}

#[async_trait]
impl Reconciler for Tokens {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, Status> {
        let Some(secret) = self.secrets.get(&key.namespace, &key.name) else {
            return Ok(Action::AwaitChange);
        };
        let (name, uid) = (annotation(&secret, NAME), annotation(&secret, UID));
        if secret.metadata.deletion_timestamp.is_some() || secret.type_.as_deref() != Some(KIND) {
            return Ok(Action::AwaitChange);
        }
        let Some(account) = self.account(&key.namespace, name, uid).await? else {
            let options = DeleteOptions { uid: secret.metadata.uid.clone(), ..DeleteOptions::default() };
            match self.secret_api.delete(&key.namespace, &key.name, options).await {
                Err(status) if status.reason() == Reason::Conflict => {}
                outcome => ignore_not_found(outcome)?,
            }
            return Ok(Action::AwaitChange);
        };
        if let Some(new) = filled(&secret, &account, &self.root_ca, &*self.signer) {
            ignore_not_found(self.secret_api.update(&key.namespace, new).await)?;
        }
        Ok(Action::AwaitChange)
    }
}

#[cfg(test)]
mod tests {
    use coracle_client::testing::FakeTransport;
    use coracle_stdx::Clock;
    use serde_json::json;

    use super::*;
    use crate::ControllersConfig;
    use crate::testing::{context, eventually};

    struct Spoken;

    impl TokenSigner for Spoken {
        fn sign(&self, namespace: &str, account: &str, uid: &str, secret: &str) -> String {
            format!("{namespace}/{account}/{}/{secret}", !uid.is_empty())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_secret_gets_its_token_and_goes_with_its_account() {
        let fake = FakeTransport::new(Clock::system());
        let mut cx = context(&fake);
        let mut config = ControllersConfig::new("root CA".to_owned(), Vec::new());
        config.token_signer = Some(Arc::new(Spoken));
        cx.config = Arc::new(config);
        let task = tokio::spawn(run(&cx));
        let (secrets, accounts) = (fake.client().api::<Secret>(), fake.client().api::<ServiceAccount>());
        let account = json!({ "metadata": { "name": "robot" } });
        accounts.create("ns", serde_json::from_value(account).expect("valid")).await.expect("created");
        let secret = |name: &str, account: &str| -> Secret {
            let value =
                json!({ "metadata": { "name": name, "annotations": { NAME: account } }, "type": KIND });
            serde_json::from_value(value).expect("a Secret")
        };
        secrets.create("ns", secret("kept", "robot")).await.expect("created");
        secrets.create("ns", secret("stray", "nobody")).await.expect("created");
        let text = |key: &'static str| {
            let secrets = secrets.clone();
            async move {
                let kept = secrets.get("ns", "kept").await.ok()?;
                let value = kept.data.as_ref()?.get(key)?.0.clone();
                String::from_utf8(value).ok()
            }
        };
        eventually(|| async { text("token").await.as_deref() == Some("ns/robot/true/kept") }).await;
        assert_eq!(text("ca.crt").await.as_deref(), Some("root CA"));
        assert_eq!(text("namespace").await.as_deref(), Some("ns"));
        let kept = secrets.get("ns", "kept").await.expect("there");
        assert!(!annotation(&kept, UID).is_empty());
        eventually(|| async { secrets.get("ns", "stray").await.is_err() }).await;
        accounts.delete("ns", "robot", DeleteOptions::default()).await.expect("deleted");
        eventually(|| async { secrets.get("ns", "kept").await.is_err() }).await;
        task.abort();
    }
}
