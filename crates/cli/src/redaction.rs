//! What others must not read, taken out of a text that is to be shown to them: secrets, the user, the machine, the network.
//!
//! Secrets are told by their looks and by the names that stand before them; the rest by what the environment says of this user and machine.
//! In doubt, something is taken out.

mod patterns;

use std::collections::BTreeSet;

use crate::machine::Machine;

pub use patterns::without_secrets;

/// What takes the place of a secret.
pub const REMOVED: &str = "(removed)";

/// Words in the names of variables that hold secrets.
const SECRET: [&str; 7] = ["TOKEN", "KEY", "SECRET", "PASSW", "PASSPHRASE", "CREDENTIAL", "AUTH"];
/// Users whom their name does not tell apart.
const ANYBODY: [&str; 12] = ["root", "user", "users", "home", "ubuntu", "debian", "fedora", "admin", "runner", "nobody", "guest", "docker"];

/// Whether a variable of this name is not to be shown.
pub fn is_secret(name: &str) -> bool {
    let name = name.to_uppercase();
    SECRET.iter().any(|word| name.contains(word))
}

/// Whether a value is more than a switch or a small number, which would be found everywhere.
fn could_be_secret(value: &str) -> bool {
    const SWITCHES: [&str; 8] = ["true", "false", "none", "null", "auto", "default", "enabled", "disabled"];
    let is_switch = SWITCHES.contains(&value.to_lowercase().as_str());
    let is_small_number = value.len() < 6 && value.bytes().all(|byte| byte.is_ascii_digit());
    value.len() >= 4 && !is_switch && !is_small_number
}

/// Takes out what it knows of a user and a machine, and whatever looks like a secret.
#[derive(Debug, Default)]
pub struct Redactor {
    secrets: BTreeSet<String>,
    prompts: BTreeSet<String>,
    homes: BTreeSet<String>,
    hosts: BTreeSet<String>,
    users: BTreeSet<String>,
}

impl Redactor {
    /// One that knows the environment of `machine`.
    pub fn of(machine: &Machine) -> Self {
        let mut redactor = Self::default();
        for (name, value) in machine.variables.iter().filter(|(_, value)| !value.is_empty()) {
            if is_secret(name) && could_be_secret(value.trim()) {
                redactor.secrets.insert(value.trim().to_owned());
            }
            redactor.learn_addresses(name, value);
        }
        for home in ["HOME", "USERPROFILE"].iter().filter_map(|name| machine.variable(name)) {
            let canonical = std::fs::canonicalize(home).map(|path| path.display().to_string());
            for home in [Some(home.to_owned()), canonical.ok()].into_iter().flatten() {
                let home = home.trim_end_matches(['/', '\\']).to_owned();
                redactor.users.extend(home.rsplit(['/', '\\']).next().map(str::to_lowercase));
                redactor.homes.insert(home);
            }
        }
        redactor
            .users
            .extend(["USER", "LOGNAME", "USERNAME", "SUDO_USER"].iter().filter_map(|name| machine.variable(name)).map(str::to_lowercase));
        redactor.users.retain(|user| user.len() >= 2 && !ANYBODY.contains(&user.as_str()));
        // A home at the root would hide every path.
        redactor.homes.retain(|home| home.len() > 1);
        let files = ["/etc/hostname", "/proc/sys/kernel/hostname"].iter().filter_map(|path| machine.text(path));
        let variables = ["HOSTNAME", "COMPUTERNAME", "HOST"].iter().filter_map(|name| machine.variable(name)).map(str::to_owned);
        for host in files.chain(variables) {
            redactor.learn_host(&host);
            redactor.learn_host(host.split('.').next().unwrap_or_default());
        }
        redactor
    }

    /// Passwords and hosts in addresses, such as those of proxies.
    fn learn_addresses(&mut self, name: &str, value: &str) {
        let upper = name.to_uppercase();
        if !["_PROXY", "_ENDPOINT", "_URL", "_HOST", "_BASE"].iter().any(|end| upper.ends_with(end)) {
            return;
        }
        for address in value.split(',').map(str::trim) {
            let address = address.split_once("://").map_or(address, |(_, rest)| rest);
            let authority = match address.rsplit_once('@') {
                Some((user, rest)) => {
                    self.secrets.extend(user.split(':').filter(|part| part.len() >= 4).map(str::to_owned));
                    rest
                }
                None => address,
            };
            self.learn_host(authority.split(['/', ':', '?']).next().unwrap_or_default());
        }
    }

    fn learn_host(&mut self, host: &str) {
        let host = host.trim().trim_matches('.').to_lowercase();
        if host.len() >= 3 && !patterns::is_public(&host) {
            self.hosts.insert(host);
        }
    }

    /// Takes these texts out too.
    pub fn hide_prompts(&mut self, prompts: impl IntoIterator<Item = String>) {
        self.prompts.extend(prompts.into_iter().map(|prompt| prompt.trim().to_owned()).filter(|prompt| prompt.len() >= 3));
    }

    /// `text` without all of it.
    pub fn apply(&self, text: &str) -> String {
        let mut text = text.to_owned();
        // The longest first: one may be part of another.
        for (words, with) in [(&self.secrets, REMOVED), (&self.prompts, "(prompt)"), (&self.homes, "~")] {
            let mut words: Vec<&String> = words.iter().collect();
            words.sort_by_key(|word| std::cmp::Reverse(word.len()));
            for word in words {
                // In JSON and TOML a backslash is two, and a quote has one before it.
                let escaped = word.replace('\\', "\\\\").replace('"', "\\\"");
                text = match with {
                    "~" => replace_words(&replace_words(&text, word, with), &escaped, with),
                    _ => text.replace(word.as_str(), with).replace(&escaped, with),
                };
            }
        }
        text = patterns::without_secrets(&text);
        text = patterns::without_places(&text);
        for (words, with) in [(&self.hosts, "HOST"), (&self.users, "USER")] {
            text = words.iter().rev().fold(text, |text, word| replace_words(&text, word, with));
        }
        text
    }
}

/// `text` with `word` replaced, in any case, where no letter or digit stands beside it.
fn replace_words(text: &str, word: &str, with: &str) -> String {
    let (lower, word) = (text.to_ascii_lowercase(), word.to_ascii_lowercase());
    let (mut out, mut from, mut search) = (String::with_capacity(text.len()), 0, 0);
    while let Some(at) = lower[search..].find(&word).map(|at| at + search) {
        let end = at + word.len();
        let is_inside = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
        let starts_inside = word.starts_with(char::is_alphanumeric) && is_inside(lower[..at].chars().next_back());
        if starts_inside || is_inside(lower[end..].chars().next()) {
            search = at + lower[at..].chars().next().map_or(1, char::len_utf8);
            continue;
        }
        out += &text[from..at];
        out += with;
        (from, search) = (end, end);
    }
    out + &text[from..]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::tests::tree;

    fn redactor(variables: &[(&str, &str)]) -> Redactor {
        let root = tree(&[("/etc/hostname", "workhorse.example.org\n")]);
        Redactor::of(&Machine::at(root.path(), variables))
    }

    #[test]
    fn user_home_and_machine_are_taken_out() {
        let redactor = redactor(&[("HOME", "/data/homes/marie"), ("USER", "marie")]);
        let told = redactor
            .apply("/data/homes/marie/runs by Marie on workhorse (workhorse.example.org), not marierose; /home/paul/x; C:\\Users\\Eve\\y");
        assert_eq!(told, "~/runs by USER on HOST (HOST), not marierose; ~/x; ~\\y");
        // Words that name nobody stay.
        let anybody = Redactor::of(&Machine::at(std::path::Path::new("/nowhere"), &[("HOME", "/root"), ("USER", "root")]));
        assert_eq!(anybody.apply("images_root = \"/root/images\" of the root user"), "images_root = \"~/images\" of the root user");
    }

    #[test]
    fn values_of_secret_variables_are_taken_out_wherever_they_stand() {
        let redactor = redactor(&[
            ("MY_API_KEY", "quite ordinary words"),
            ("HTTPS_PROXY", "http://eve:pass@word@proxy.corp:3128"),
            ("LANG", "C.UTF-8"),
        ]);
        let told = redactor.apply("[\"quite ordinary words\", \"pass@word\", \"proxy.corp\", \"C.UTF-8\"]");
        assert_eq!(told, "[\"(removed)\", \"(removed)\", \"HOST\", \"C.UTF-8\"]");
    }

    #[test]
    fn a_switch_is_no_secret_whatever_its_name() {
        let redactor = redactor(&[("MONKEY", "true"), ("KEY_COUNT", "4096"), ("AUTH", "Disabled"), ("PIN_KEY", "902143")]);
        assert_eq!(redactor.apply("true 4096 disabled 902143"), "true 4096 disabled (removed)");
    }

    #[test]
    fn prompts_are_taken_out_as_they_are_written_in_json() {
        let mut redactor = Redactor::default();
        redactor.hide_prompts(["a \"red\" fox".to_owned(), "ab".to_owned()]);
        assert_eq!(redactor.apply("{\"p\":\"a \\\"red\\\" fox\"} a \"red\" fox ab"), "{\"p\":\"(prompt)\"} (prompt) ab");
    }

    #[test]
    fn names_of_secrets() {
        for name in ["HF_TOKEN", "OPENAI_API_KEY", "my_password", "AWS_SECRET_ACCESS_KEY", "BASIC_AUTH"] {
            assert!(is_secret(name), "{name}");
        }
        assert!(["VP_DEVICE", "HF_HOME", "PATH"].iter().all(|name| !is_secret(name)));
    }
}
