//! An [`ObjectReader`] over a plain map, for the tests of this crate.

use std::collections::BTreeMap;
use std::sync::Arc;

use coracle_meta::{Object, ObjectReader};
use parking_lot::Mutex;

type Key = (String, String, String, String);

#[derive(Default)]
pub(crate) struct Objects(Mutex<BTreeMap<Key, Arc<dyn Object>>>);

impl Objects {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }
    pub(crate) fn put<K: k8s_openapi::Resource + Object>(&self, object: K) {
        self.put_as(K::URL_PATH_SEGMENT, Arc::new(object));
    }
    pub(crate) fn put_as(&self, resource: &str, object: Arc<dyn Object>) {
        let key = (object.gvk().group, resource.into(), object.namespace().into(), object.name().into());
        self.0.lock().insert(key, object);
    }
    pub(crate) fn remove(&self, group: &str, resource: &str, namespace: &str, name: &str) {
        self.0.lock().remove(&(group.into(), resource.into(), namespace.into(), name.into()));
    }
    /// With upstream's bootstrap policy.
    pub(crate) fn bootstrapped() -> Arc<Self> {
        let objects = Self::new();
        for object in crate::bootstrap::objects() {
            let resource = format!("{}s", object.gvk().kind.to_lowercase());
            objects.put_as(&resource, object.into());
        }
        objects
    }
}

impl ObjectReader for Objects {
    fn get(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Option<Arc<dyn Object>> {
        self.0.lock().get(&(group.into(), resource.into(), namespace.into(), name.into())).cloned()
    }
    fn list(&self, group: &str, resource: &str, namespace: &str) -> Vec<Arc<dyn Object>> {
        let all = self.0.lock();
        let wanted = all.iter().filter(|((g, r, ns, _), _)| {
            g == group && r == resource && (namespace.is_empty() || ns == namespace)
        });
        wanted.map(|(_, object)| object.clone()).collect()
    }
}

/// Made for this test; opens nothing.
pub(crate) const RSA_KEY: &str = "\
-----BEGIN PRIVATE KEY-----
MIIEvAIBADANBgkqhkiG9w0BAQEFAASCBKYwggSiAgEAAoIBAQDGGW4WmCkOWHtT
I+01S2sav17gv5cPexJIstoUdinlRi548tKTZtcir5miXS6f/6ciXxombVf4+znl
im5AWyXYUogeEpc9O4+CtCTBe97Ut7xdWepj4SHoDgWHBem2aS9EAeUmzolr/9pJ
UnPLHdd5fNdh5a2a+lVJN4d/BdkgiNAqF8bj7WRCjKc5bltEVkbY5REXS1338Ytr
GqyympwXZQ1bpgeYqjGbVHZPbh+224hKCNnxn/0kMfp6pzwGs3Os2d2bP43CJtCr
PFv3IxXw4DV6phz5gm4ykGvuUbuwoOvt2X6bOxnlcdcTIDUoUzw0R35LYF500t7W
zNTyEeYVAgMBAAECggEALAA2gmjCR8gx/lXOyKVrkQmcPJ35ouvidAjb5SsY467q
wB0pVinD09W+sYByjIHXwQvwLkRfw7MjmT9d/UfxmEK+rrVQ5/4sgmradip6JHP6
MB76b7xwEE/a/PJ8hrKG19t25199SSKPfPVGOIG0nGy1F27RWIjNfEGMBFQLdgzh
Zy5AKNFGhYtZVwFW/rOwLOClhnKhAsLNs3v2x3iSoIk0P3YdCgmE8qAHTlWDDJsj
4FHwGwYD2rLMeaXqS5isMJ4DToIcPbt1d/VSIFP3O4KT7cUaLPhOdMsc59IceJvW
Vg4R1+7r72myWeMyqmmFvSzRKd0gCHcpUawzs/wVEQKBgQDlWPlt23V7PtZD9M//
kOaAtL/oaghSWFrXBTBnlfpXnCtuQ7eP9QetTLsGUidLUASA89kt4XkmPzy3a14o
DUD/5RmE9R5c/Z0uQxG0H176jViDegB25vYgJ1ztp3pSWmMSOiSCEtDlt++uTzVS
ybTp+O9GID0m4Xov+LprF0sqJQKBgQDdHtRz6aCjfFSmOMjCRcT0oklM8CzbR80J
0ZbIcGET+w8MeSWYm0ag4d4pZVM4qM2RSN4qRaxzDY2uAxG8G8IziELWmhogDN8D
N37n6oLvcgHH4fMWNMM6ckhDfbuHEA7REsjov4jaz6/3jqbqn9xHlq7E36gDbRM6
x05YdVrxMQKBgAIvBrD1FflGb+PVwOU+C/PNxMYBvHKMRNEnS36w/uE2q3MxUd4d
ByWvRViaD6W37VMM/1RggTbMA1f7vbnD5oqJM+UAMHnSMFzwZorAgbcBAYa+8qIv
MMi9lzTsE04VbjwOMarLYxHM3otaVbekFATmSeDxDaQBIZizVZMPdbfBAoGASHn3
dvrHvW5eLJGGNC88LFcZIY/DlChHq4U4IAC9wRfUSelXilqy3r7J29WrXnHt10YE
E+T8bkWt/7Bf2sFaeRublM2z7HdrjZleDlQOkL9UmBiWXdvzda/Jwd1vXwjDYoH+
ulM1X0sdyU3HpjW5tPlN1ZfdcSoKWITFSDdHFLECgYBuiaakQTnJLQdOnCa0gxIm
2upclSqSo8YurbTemhD0E+RCw82ZoxBDLdOEUn6dBnz9WupqoiyV1lUuHUC30bio
wFVNkE1QMto4GL4ntS8GjGqMNYnpp63Ym9pdfGkEx3cDz7a6dHAJXIoVtDEEFqkd
SdVIXlcitiLRuAACvUceqA==
-----END PRIVATE KEY-----
";
