//! Import, pull, names and removal of images.

use super::*;

pub async fn images_are_found_by_every_name(lab: &Lab) {
    let find = async |name: &str| {
        lab.runtime.image_status(&ImageSpec { image: name.into(), ..Default::default() }).await.unwrap()
    };
    let image = find(IMAGE).await.unwrap();
    assert_eq!(find(&image.id).await.unwrap(), image);
    assert_eq!(find(&image.repo_digests[0]).await.unwrap(), image);
    assert!(find("registry.example/absent").await.is_none());
    let exe = lab.dir.join("program");
    fs::copy("/usr/bin/busybox", &exe).unwrap();
    lab.runtime.ensure_self_image("coracle.local/self", &exe).await.unwrap();
    assert!(find("coracle.local/self").await.is_some());
    let missing = lab.runtime.import_image(Path::new("/nonexistent.tar")).await.unwrap_err();
    assert!(missing.to_string().starts_with("cannot import image /nonexistent.tar: "), "{missing}");
}

/// A registry that has what an OCI layout directory has.
async fn serve_registry(layout: PathBuf) -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let layout = layout.clone();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await?);
                }
                let head = String::from_utf8_lossy(&head).into_owned();
                let path = head.split(' ').nth(1).unwrap_or("").to_owned();
                let last = path.rsplit('/').next().unwrap_or("").to_owned();
                let blob = |digest: &str| {
                    fs::read(layout.join("blobs/sha256").join(digest.trim_start_matches("sha256:")))
                };
                let body = if path.contains("/manifests/1") {
                    let index = String::from_utf8(fs::read(layout.join("index.json"))?).unwrap();
                    let digest = index.split("sha256:").nth(1).unwrap().split('"').next().unwrap().to_owned();
                    blob(&digest).ok()
                } else if path.contains("/blobs/") {
                    blob(&last).ok()
                } else {
                    (path == "/v2/").then(Vec::new)
                };
                let (status, body) = body.map_or(
                    (404, b"{\"errors\":[{\"code\":\"MANIFEST_UNKNOWN\",\"message\":\"unknown\"}]}".to_vec()),
                    |b| (200, b),
                );
                let kind = if path.contains("/manifests/") {
                    "application/vnd.oci.image.manifest.v1+json"
                } else {
                    "application/octet-stream"
                };
                let answer = format!(
                    "HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\
                     connection: close\r\n\r\n",
                    body.len()
                );
                stream.write_all(answer.as_bytes()).await?;
                stream.write_all(&body).await?;
                stream.shutdown().await
            });
        }
    });
    port
}

pub async fn image_is_pulled_from_a_local_registry(lab: &Lab) {
    let layout = lab.dir.join("layout");
    fs::create_dir_all(&layout).unwrap();
    let made = Command::new("tar").arg("xf").arg(lab.dir.join("busybox.tar")).arg("-C").arg(&layout).status();
    assert!(made.unwrap().success());
    let spec = |image: String| ImageSpec { image, ..Default::default() };
    let old = lab.runtime.image_status(&spec(IMAGE.into())).await.unwrap().unwrap();
    lab.runtime.remove_image(&spec(old.id.clone())).await.unwrap();
    assert_eq!(fs::read_dir(lab.config.root.join("layers")).unwrap().count(), 1, "only the self image's");
    let port = serve_registry(layout.clone()).await;
    let name = format!("127.0.0.1:{port}/test/busybox:1");
    let id = lab.runtime.pull_image(&spec(name.clone()), None).await.unwrap();
    assert_eq!(id, old.id);
    let image = lab.runtime.image_status(&spec(name.clone())).await.unwrap().unwrap();
    assert_eq!(image.repo_tags, [name]);
    let absent = format!("127.0.0.1:{port}/test/busybox:absent");
    let error = lab.runtime.pull_image(&spec(absent), None).await.unwrap_err();
    assert!(matches!(error, CriError::NotFound(_)), "{error}");
    let refused = lab.runtime.pull_image(&spec("127.0.0.1:1/x:1".into()), None).await.unwrap_err();
    assert!(refused.to_string().contains("onnection refused"), "{refused}");
    // A damaged layer is noticed, and nothing of it stays.
    lab.runtime.remove_image(&spec(id)).await.unwrap();
    let largest = fs::read_dir(layout.join("blobs/sha256"))
        .unwrap()
        .flatten()
        .max_by_key(|e| e.metadata().unwrap().len());
    let layer = largest.unwrap().path();
    let good = fs::read(&layer).unwrap();
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 0xff;
    fs::write(&layer, bad).unwrap();
    assert!(lab.runtime.pull_image(&spec(format!("127.0.0.1:{port}/test/busybox:1")), None).await.is_err());
    assert!(lab.runtime.import_image(&layout).await.is_err());
    assert_eq!(fs::read_dir(lab.config.root.join("layers")).unwrap().count(), 1);
    assert_eq!(fs::read_dir(lab.config.root.join("tmp")).unwrap().count(), 0);
    fs::write(&layer, good).unwrap();
}

pub async fn archives_of_other_shapes_are_imported(lab: &Lab) {
    let layout = lab.dir.join("layout");
    let spec = |image: &str| ImageSpec { image: image.into(), ..Default::default() };
    // A directory; then the same gzipped; then as docker-archive alone.
    assert_eq!(lab.runtime.import_image(&layout).await.unwrap(), [IMAGE]);
    let pack = |name: &str, args: &[&str]| {
        let path = lab.dir.join(name);
        let done = Command::new("tar").arg("cf").arg(&path).arg("-C").arg(&layout).args(args).status();
        assert!(done.unwrap().success());
        path
    };
    for (name, args) in [("layout.tar.gz", &["-z", "."][..]), ("docker.tar", &["manifest.json", "blobs"][..])]
    {
        let id = lab.runtime.image_status(&spec(IMAGE)).await.unwrap().unwrap().id;
        lab.runtime.remove_image(&spec(&id)).await.unwrap();
        assert_eq!(lab.runtime.import_image(&pack(name, args)).await.unwrap(), [IMAGE], "{name}");
        assert_eq!(lab.runtime.image_status(&spec(IMAGE)).await.unwrap().unwrap().id, id);
    }
    let whole = fs::read(lab.dir.join("busybox.tar")).unwrap();
    let cut = lab.dir.join("cut.tar");
    fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
    let error = lab.runtime.import_image(&cut).await.unwrap_err();
    println!("   {error}");
}
