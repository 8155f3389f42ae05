//! Namespaces of a pod: network, IPC, host name and users, made in a thread that ends at once and kept alive by bind
//! mounts, so that no process has to hold them.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use coracle_cri::v1::{Map, NamespaceOptions};
use nix::sched::{CloneFlags, setns, unshare};

use crate::user_namespace::Holder;

/// Paths of a sandbox's namespaces.
#[derive(Clone, Debug)]
pub(crate) struct PodNamespaces {
    state: PathBuf,
    sandbox: String,
}

impl PodNamespaces {
    pub fn new(state: &Path, sandbox: &str) -> Self {
        Self { state: state.to_owned(), sandbox: sandbox.to_owned() }
    }
    pub fn network(&self) -> PathBuf {
        self.state.join("netns").join(&self.sandbox)
    }
    pub fn ipc(&self) -> PathBuf {
        self.state.join("ipcns").join(&self.sandbox)
    }
    pub fn uts(&self) -> PathBuf {
        self.state.join("utsns").join(&self.sandbox)
    }

    /// The user namespace, if the pod has one.
    pub fn user(&self) -> PathBuf {
        self.state.join("userns").join(&self.sandbox)
    }

    /// Makes the namespaces the pod does not share with the host, sets host name and sysctls in them and
    /// brings the loopback interface up.
    pub fn create(&self, options: &NamespaceOptions, hostname: &str, sysctls: &Map) -> io::Result<()> {
        let mut flags = CloneFlags::empty();
        let mut files = Vec::new();
        if !options.host_network {
            flags |= CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWUTS;
            files.extend([("net", self.network()), ("uts", self.uts())]);
        }
        if !options.host_ipc {
            flags |= CloneFlags::CLONE_NEWIPC;
            files.push(("ipc", self.ipc()));
        }
        let holder = options.user_namespace.as_ref().map(|m| Holder::start(flags, m)).transpose()?;
        let users = holder.as_ref().map(|h| (h.namespace("user"), self.user()));
        for file in files.iter().map(|(_, file)| file).chain(users.iter().map(|(_, file)| file)) {
            fs::create_dir_all(file.parent().unwrap_or(&self.state))?;
            fs::File::create(file)?;
        }
        let (network, hostname, sysctls) = (!options.host_network, hostname.to_owned(), sysctls.clone());
        let made = in_own_thread(move || {
            match &holder {
                None => unshare(flags)?,
                Some(holder) => {
                    for (kind, _) in &files {
                        setns(fs::File::open(holder.namespace(kind))?, CloneFlags::empty())?;
                    }
                }
            }
            if network {
                nix::unistd::sethostname(&hostname)?;
                loopback_up()?;
                unprivileged_network();
            }
            for (name, value) in &sysctls {
                let path = Path::new("/proc/sys").join(name.replace('.', "/"));
                fs::write(&path, value).map_err(|e| {
                    io::Error::new(e.kind(), format!("cannot set sysctl {name}={value}: {e}"))
                })?;
            }
            for (kind, file) in &files {
                rustix::mount::mount_bind(format!("/proc/thread-self/ns/{kind}"), file)?;
            }
            if let Some((namespace, file)) = &users {
                rustix::mount::mount_bind(namespace, file)?;
            }
            Ok(())
        });
        if made.is_err() {
            self.remove();
        }
        made
    }

    /// Drops the namespaces; those still in use by a process live on until it ends.
    pub fn remove(&self) {
        for file in [self.network(), self.ipc(), self.uts(), self.user()] {
            crate::files::unmount(&file);
            let _ = crate::files::remove_file(&file);
        }
    }
}

/// Connects to a port on the loopback address of a network namespace.
pub(crate) fn connect_inside(namespace: Option<PathBuf>, port: u16) -> io::Result<TcpStream> {
    in_own_thread(move || {
        if let Some(path) = &namespace {
            setns(fs::File::open(path)?, CloneFlags::CLONE_NEWNET)?;
        }
        let timeout = Duration::from_secs(10);
        TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)), timeout).or_else(|first| {
            TcpStream::connect_timeout(&SocketAddr::from((Ipv6Addr::LOCALHOST, port)), timeout)
                .map_err(|_| first)
        })
    })
}

/// Runs `f` in a thread that ends with it: namespaces entered there stain no other work.
pub(crate) fn in_own_thread<T: Send + 'static>(
    f: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    std::thread::Builder::new()
        .name("namespaces".into())
        .stack_size(256 << 10)
        .spawn(f)?
        .join()
        .map_err(|_| io::Error::other("the namespace thread panicked"))?
}

/// As containerd by default: any user of the pod may ping and listen on any port; the namespace is its own.
fn unprivileged_network() {
    let _ = fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
    let _ = fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647");
}

fn loopback_up() -> io::Result<()> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    // SAFETY: ifreq is plain data; the kernel reads the name and flags of a fully initialised value.
    let status = unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&socket), libc::SIOCSIFFLAGS as _, &request)
    };
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
