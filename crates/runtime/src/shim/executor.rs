//! The last steps before a container's program runs, inside its namespaces: find the program, filter system
//! calls, give up privileges, exec.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::OnceLock;

use caps::{CapSet, Capability, CapsHashSet};
use libcontainer::oci_spec::runtime::Spec;
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use nix::errno::Errno;
use nix::unistd::{AccessFlags, eaccess};
use seccompiler::BpfProgram;

use super::launch::report;
use crate::protocol::LaunchSpec;

/// Search path of a process whose environment has none.
pub(crate) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What [`ContainerExecutor`] applies. Filled before libcontainer forks, because memory must not be allocated
/// between fork and exec more than it has to.
static PREPARED: OnceLock<Prepared> = OnceLock::new();

struct Prepared {
    filters: Vec<BpfProgram>,
    keep: CapsHashSet,
}

/// Compiles the filters and reads the capability names.
pub(crate) fn prepare(launch: &LaunchSpec) -> Result<(), String> {
    let keep: CapsHashSet =
        launch.capabilities.iter().filter_map(|name| Capability::from_str(name).ok()).collect();
    let filters = match (launch.seccomp, launch.seccomp_profile.as_str()) {
        (false, _) => Vec::new(),
        (true, "") => crate::seccomp::default_filters(&keep)?,
        (true, profile) => crate::seccomp_profile::filters(profile, &keep)?,
    };
    let _ = PREPARED.set(Prepared { filters, keep });
    Ok(())
}

/// Runs the program of the specification.
#[derive(Clone)]
pub(crate) struct ContainerExecutor;

impl Executor for ContainerExecutor {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        let (args, env) = command(spec);
        match find(args, env) {
            Ok(_) => Ok(()),
            Err(message) => {
                report("refused", &message);
                Err(ExecutorValidationError::ArgValidationError(message))
            }
        }
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let (args, env) = command(spec);
        let program = find(args, env).map_err(ExecutorError::Other)?;
        if let Some(prepared) = PREPARED.get() {
            restrict(prepared).map_err(|message| {
                report("refused", &message);
                ExecutorError::Other(message)
            })?;
        }
        // libcontainer does not reset what the shim's children inherit.
        // SAFETY: resetting a signal disposition.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
        let path = CString::new(program.as_os_str().as_bytes()).map_err(|_| ExecutorError::InvalidArg)?;
        let args: Vec<CString> = args
            .iter()
            .map(|a| CString::new(a.as_bytes()))
            .collect::<Result<_, _>>()
            .map_err(|_| ExecutorError::InvalidArg)?;
        let Err(errno) = nix::unistd::execv(&path, &args);
        // As runc: the reason is the last line of the container's output.
        eprintln!("exec {}: {}", program.display(), errno.desc().to_lowercase());
        std::process::exit(255);
    }
}

fn restrict(prepared: &Prepared) -> Result<(), String> {
    for filter in &prepared.filters {
        crate::seccomp::install(filter).map_err(|e| format!("cannot install seccomp filter: {e}"))?;
    }
    if prepared.filters.is_empty() {
        return Ok(());
    }
    // libcontainer left us CAP_SYS_ADMIN and CAP_SETPCAP for the filters; take them away if not wanted.
    let failed = |e: caps::errors::CapsError| format!("cannot drop capabilities: {e}");
    for capability in caps::all() {
        if !prepared.keep.contains(&capability)
            && caps::has_cap(None, CapSet::Bounding, capability).unwrap_or(false)
        {
            caps::drop(None, CapSet::Bounding, capability).map_err(failed)?;
        }
    }
    for set in [CapSet::Effective, CapSet::Permitted] {
        let now = caps::read(None, set).map_err(failed)?;
        let keep: CapsHashSet = now.intersection(&prepared.keep).copied().collect();
        if keep.len() != now.len() {
            caps::set(None, set, &keep).map_err(failed)?;
        }
    }
    Ok(())
}

fn command(spec: &Spec) -> (&[String], &[String]) {
    let process = spec.process().as_ref();
    let args = process.and_then(|p| p.args().as_deref()).unwrap_or_default();
    let env = process.and_then(|p| p.env().as_deref()).unwrap_or_default();
    (args, env)
}

/// Looks a program up as Go's `exec.LookPath` does, whose messages clients know from runc.
fn find(args: &[String], env: &[String]) -> Result<PathBuf, String> {
    let Some(name) = args.first().filter(|n| !n.is_empty()) else {
        return Err("exec: no command".into());
    };
    if name.contains('/') {
        let path = Path::new(name);
        return match usable(path) {
            Ok(()) => Ok(path.to_owned()),
            Err(Errno::ENOENT) => Err(format!("exec: {name:?}: stat {name}: no such file or directory")),
            Err(Errno::EISDIR) => Err(format!("exec: {name:?}: is a directory")),
            Err(errno) => Err(format!("exec: {name:?}: {}", errno.desc().to_lowercase())),
        };
    }
    let search = env.iter().find_map(|e| e.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
    search
        .split(':')
        .map(|dir| Path::new(if dir.is_empty() { "." } else { dir }).join(name))
        .find(|path| usable(path).is_ok())
        .ok_or_else(|| format!("exec: {name:?}: executable file not found in $PATH"))
}

fn usable(path: &Path) -> Result<(), Errno> {
    let errno = |e: std::io::Error| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO));
    if std::fs::metadata(path).map_err(errno)?.is_dir() {
        return Err(Errno::EISDIR);
    }
    // Root may pass the check of a file without any execute bit's kin; the kernel decides at exec.
    eaccess(path, AccessFlags::X_OK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &str, want: &str) {
        assert_eq!(find(&[name.to_owned()], &["PATH=/bin".to_owned()]).unwrap_err(), want);
    }

    #[test]
    fn absent_programs_are_named_as_runc_names_them() {
        check("no-such", "exec: \"no-such\": executable file not found in $PATH");
        check("/no/such", "exec: \"/no/such\": stat /no/such: no such file or directory");
        check("/tmp", "exec: \"/tmp\": is a directory");
        check("/etc/passwd", "exec: \"/etc/passwd\": permission denied");
    }
}
