//! `coracle image`: images of the node, through the daemon's control socket.

use coracle_cri::v1::Image;

use crate::cli::{ImageArgs, ImageCommand};
use crate::cluster::Paths;
use crate::control::{Request, ask};
use crate::error::Failure;

/// Runs an image subcommand.
///
/// # Errors
/// No daemon, a path that is not there, or the runtime's refusal.
pub async fn run(args: ImageArgs) -> Result<(), Failure> {
    let socket = Paths::new(&args.data.data_dir)?.socket();
    match args.command {
        ImageCommand::Import { paths } => {
            for path in paths {
                let path = std::fs::canonicalize(&path).map_err(|e| Failure::file("read", &path, &e))?;
                let names = ask(&socket, &Request::Import { path })
                    .await
                    .map_err(|e| e.or_hint("nothing of this archive was kept"))?;
                for name in names.as_array().into_iter().flatten().filter_map(|n| n.as_str()) {
                    println!("imported {name}");
                }
            }
        }
        ImageCommand::Export { image, path } => {
            let path = std::path::absolute(&path).map_err(|e| Failure::file("write", &path, &e))?;
            if path.exists() {
                let text = format!("{} exists already", path.display());
                return Err(Failure::new(text, "name a file that does not exist"));
            }
            ask(&socket, &Request::Export { image: image.clone(), path: path.clone() })
                .await
                .map_err(|e| e.or_hint("`coracle image ls` lists what is there"))?;
            println!("exported {image} to {}", path.display());
        }
        ImageCommand::Pull { image } => {
            let hint = "check the name and the network, or load an archive with `coracle image import`";
            let id =
                ask(&socket, &Request::Pull { image: image.clone() }).await.map_err(|e| e.or_hint(hint))?;
            println!("pulled {image} ({})", id.as_str().unwrap_or(""));
        }
        ImageCommand::Ls => {
            let images = ask(&socket, &Request::Images).await?;
            let images: Vec<Image> = serde_json::from_value(images).map_err(|e| {
                Failure::new(format!("the daemon's answer: {e}"), "restart it with this version")
            })?;
            println!("{:<48} {:<14} {:>9}", "IMAGE", "ID", "SIZE");
            for image in images {
                let id: String = image.id.trim_start_matches("sha256:").chars().take(12).collect();
                let size = format!("{:.1} MB", image.size as f64 / 1e6);
                for name in if image.repo_tags.is_empty() { vec!["<none>".into()] } else { image.repo_tags } {
                    println!("{name:<48} {id:<14} {size:>9}");
                }
            }
        }
        ImageCommand::Rm { image } => {
            ask(&socket, &Request::RemoveImage { image: image.clone() })
                .await
                .map_err(|e| e.or_hint("`coracle image ls` lists what is there"))?;
            println!("removed {image}");
        }
    }
    Ok(())
}
