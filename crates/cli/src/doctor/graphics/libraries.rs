//! Shared libraries, looked for where the system's loader looks.

use std::path::PathBuf;

use crate::machine::Machine;

/// Folders of libraries on the usual systems; the loader's own configuration adds to them.
const FOLDERS: [&str; 14] = [
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/lib/x86_64-linux-gnu",
    "/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/lib64",
    "/usr/lib",
    "/lib",
    "/usr/local/lib",
    "/usr/lib/wsl/lib",
    "/usr/local/cuda/lib64",
    "/usr/local/nvidia/lib64",
    "/opt/cuda/lib64",
    "/run/opengl-driver/lib",
];

/// The folders in which libraries are looked for, in order.
pub struct Libraries<'a> {
    machine: &'a Machine,
    folders: Vec<PathBuf>,
}

impl<'a> Libraries<'a> {
    /// Those of a machine.
    pub fn of(machine: &'a Machine) -> Self {
        let mut folders = machine.folders("LD_LIBRARY_PATH");
        for name in machine.names("/etc/ld.so.conf.d") {
            let text = machine.text(format!("/etc/ld.so.conf.d/{name}")).unwrap_or_default();
            folders.extend(text.lines().map(str::trim).filter(|line| line.starts_with('/')).map(PathBuf::from));
        }
        folders.extend(FOLDERS.iter().map(PathBuf::from));
        folders.extend(machine.variable("CUDA_PATH").map(|path| PathBuf::from(path).join("lib64")));
        Self { machine, folders }
    }

    /// The path of the first library whose name begins so: `libnvrtc.so` finds `libnvrtc.so.12`.
    pub fn find(&self, begins: &str) -> Option<String> {
        let is_it = |name: &String| name == begins || name.strip_prefix(begins).is_some_and(|rest| rest.starts_with('.'));
        self.folders.iter().find_map(|folder| {
            let name = self.machine.names(folder).into_iter().find(is_it)?;
            // A link that leads nowhere is not a library.
            let path = folder.join(name);
            self.machine.has(&path).then(|| path.display().to_string())
        })
    }
}

/// The folder of CUDA's headers, which kernels are compiled with.
pub fn cuda_headers(machine: &Machine) -> Option<String> {
    let chosen = machine.variable("CUDA_PATH").map(|path| format!("{path}/include"));
    let usual = ["/usr/local/cuda/include", "/opt/cuda/include"].map(str::to_owned);
    chosen.into_iter().chain(usual).find(|folder| machine.has(format!("{folder}/cuda_runtime.h")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::tests::tree;

    #[test]
    fn a_library_is_found_by_the_loaders_configuration_and_by_its_number() {
        let root = tree(&[
            ("/etc/ld.so.conf.d/cuda.conf", "# CUDA\n/opt/somewhere/lib\n"),
            ("/opt/somewhere/lib/libnvrtc.so.12.4", ""),
            ("/own/libcuda.so.1", ""),
            ("/usr/lib64/libvulkan.so.1.3.0", ""),
            ("/usr/lib64/libvulkan.so.10", ""),
        ]);
        let machine = Machine::at(root.path(), &[("LD_LIBRARY_PATH", "/own")]);
        let libraries = Libraries::of(&machine);
        assert_eq!(libraries.find("libnvrtc.so").as_deref(), Some("/opt/somewhere/lib/libnvrtc.so.12.4"));
        assert_eq!(libraries.find("libcuda.so.1").as_deref(), Some("/own/libcuda.so.1"));
        assert_eq!(libraries.find("libvulkan.so.1").as_deref(), Some("/usr/lib64/libvulkan.so.1.3.0"));
        assert_eq!(libraries.find("libmetal.so"), None);
    }

    #[test]
    fn headers_are_looked_for_where_cuda_path_says_first() {
        let root = tree(&[("/usr/local/cuda/include/cuda_runtime.h", ""), ("/my/cuda/include/cuda_runtime.h", "")]);
        assert_eq!(cuda_headers(&Machine::at(root.path(), &[])).as_deref(), Some("/usr/local/cuda/include"));
        assert_eq!(cuda_headers(&Machine::at(root.path(), &[("CUDA_PATH", "/my/cuda")])).as_deref(), Some("/my/cuda/include"));
        assert_eq!(cuda_headers(&Machine::at(tree(&[]).path(), &[])), None);
    }
}
