//! What the container runtime asks for: `CNI_*` variables and the network configuration. Pure.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use crate::{
    attachment::Attachment,
    reply::{Code, Failure},
};

/// The versions of the specification whose configurations are understood, oldest first.
pub(crate) const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// The last of [`VERSIONS`].
pub(crate) const NEWEST_VERSION: &str = "1.1.0";

const MAX_ID_BYTES: usize = 253;
const MAX_INTERFACE_NAME_BYTES: usize = 15;

/// What the plugin is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    /// Attach a pod.
    Add,
    /// Take a pod off.
    Del,
    /// Look whether a pod is still attached as it was.
    Check,
    /// Free what belongs to nothing any more.
    Gc,
    /// Say whether ADD can work.
    Status,
    /// Say which versions are spoken.
    Version,
}

impl Verb {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "ADD" => Self::Add,
            "DEL" => Self::Del,
            "CHECK" => Self::Check,
            "GC" => Self::Gc,
            "STATUS" => Self::Status,
            "VERSION" => Self::Version,
            _ => return None,
        })
    }

    /// The first version of the specification that knows this verb.
    fn since(self) -> &'static str {
        match self {
            Self::Add | Self::Del | Self::Version => "0.3.1",
            Self::Check => "0.4.0",
            Self::Gc | Self::Status => "1.1.0",
        }
    }
}

/// One call of the plugin, checked.
#[derive(Debug)]
pub(crate) struct Request {
    /// What to do.
    pub(crate) verb: Verb,
    /// For which pod; absent in verbs that are about the network as a whole.
    attachment: Option<Attachment>,
    /// Path of the pod's network namespace; absent when it is gone or was not named.
    netns: Option<PathBuf>,
    /// The network configuration.
    pub(crate) config: Config,
}

impl Request {
    /// Reads a call. `variable` looks up one variable of the environment.
    pub(crate) fn parse(
        variable: impl Fn(&str) -> Option<String>,
        input: &[u8],
    ) -> Result<Self, Failure> {
        let given = |name| variable(name).filter(|value: &String| !value.is_empty());
        let named = given("CNI_COMMAND")
            .ok_or_else(|| bad_variable("CNI_COMMAND", "is not set: this is a CNI plugin"))?;
        let verb = Verb::parse(&named)
            .ok_or_else(|| bad_variable("CNI_COMMAND", &format!("{named:?} is no CNI verb")))?;
        let config = Config::parse(verb, input)?;
        let mut request = Self {
            verb,
            attachment: None,
            netns: None,
            config,
        };
        if matches!(verb, Verb::Add | Verb::Del | Verb::Check) {
            request.attachment = Some(Attachment {
                container_id: identifier("CNI_CONTAINERID", given("CNI_CONTAINERID"))?,
                ifname: interface_name(given("CNI_IFNAME"))?,
            });
            request.netns = given("CNI_NETNS").map(PathBuf::from);
        }
        Ok(request)
    }

    /// The pod that the call is about.
    pub(crate) fn attachment(&self) -> Result<&Attachment, Failure> {
        self.attachment
            .as_ref()
            .ok_or_else(|| bad_variable("CNI_CONTAINERID", "is needed here"))
    }

    /// The pod's network namespace.
    pub(crate) fn netns(&self) -> Result<&Path, Failure> {
        self.netns
            .as_deref()
            .filter(|path| path.is_absolute())
            .ok_or_else(|| bad_variable("CNI_NETNS", "must be the path of a network namespace"))
    }
}

/// The plugin's part of a network configuration. Keys that it does not know are passed by.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Config {
    /// The version of the specification that the configuration and the answer follow.
    #[serde(default)]
    pub(crate) cni_version: String,
    /// Name of the network in the runtime's configuration.
    #[serde(default)]
    pub(crate) name: String,
    /// Whether the pod's default routes are by this interface. Absent: those of the families that
    /// have none by another one.
    default_route: Option<Value>,
    /// Hardware address of the pod's end, in place of the plugin's choice.
    mac: Option<Value>,
    /// What the runtime has for this pod by the capabilities that the configuration names: its
    /// `mac` goes before the configuration's.
    runtime_config: Option<Value>,
    /// MTU of pods in bytes, in place of the one that meshd gives.
    pub(crate) mtu: Option<u32>,
    /// Where meshd's socket and `node.json` are.
    #[serde(default = "Config::default_runtime_dir")]
    pub(crate) runtime_dir: PathBuf,
    /// Where meshd keeps the last copy of `node.json`.
    #[serde(default = "Config::default_state_dir")]
    pub(crate) state_dir: PathBuf,
    /// Where the plugin keeps its ledger.
    #[serde(default = "Config::default_data_dir")]
    pub(crate) data_dir: PathBuf,
    /// Passed on in the answer.
    pub(crate) dns: Option<Value>,
    /// What the plugins before this one, or an earlier ADD, answered.
    pub(crate) prev_result: Option<Value>,
    /// For GC: everything that still exists.
    #[serde(rename = "cni.dev/valid-attachments")]
    pub(crate) valid_attachments: Option<Vec<Attachment>>,
}

impl Config {
    fn parse(verb: Verb, input: &[u8]) -> Result<Self, Failure> {
        // VERSION is asked before anything is configured.
        let input = if verb == Verb::Version && input.trim_ascii().is_empty() {
            b"{}"
        } else {
            input
        };
        let config: Self = serde_json::from_slice(input).map_err(|cause| {
            Failure::new(
                Code::Decoding,
                format!("the network configuration is not readable: {cause}"),
            )
        })?;
        match verb {
            Verb::Version => return Ok(config),
            // Whatever wrote the configuration, what was attached must go.
            Verb::Del => {}
            _ => config.validate(verb)?,
        }
        for folder in [&config.runtime_dir, &config.state_dir, &config.data_dir] {
            if !folder.is_absolute() {
                return Err(bad_config(&format!(
                    "{:?} must be an absolute path",
                    folder.display().to_string()
                )));
            }
        }
        Ok(config)
    }

    fn validate(&self, verb: Verb) -> Result<(), Failure> {
        let position = |version: &str| VERSIONS.iter().position(|known| *known == version);
        let Some(version) = position(&self.cni_version) else {
            return Err(Failure::new(
                Code::IncompatibleVersion,
                format!(
                    "cniVersion {:?} is not supported, {} are",
                    self.cni_version,
                    VERSIONS.join(", ")
                ),
            ));
        };
        if position(verb.since()).is_some_and(|since| version < since) {
            return Err(Failure::new(
                Code::IncompatibleVersion,
                format!(
                    "cniVersion {} does not know this verb, {} and later do",
                    self.cni_version,
                    verb.since()
                ),
            ));
        }
        if !is_identifier(&self.name) {
            return Err(bad_config(&format!("{:?} is no network name", self.name)));
        }
        self.default_route()?;
        self.mac()?;
        if self.mtu.is_some_and(|mtu| !(1280..=65_535).contains(&mtu)) {
            return Err(bad_config("mtu must be within 1280..=65535"));
        }
        Ok(())
    }

    /// Whether the pod's default routes are by this interface, if that is said.
    pub(crate) fn default_route(&self) -> Result<Option<bool>, Failure> {
        match &self.default_route {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bool(wanted)) => Ok(Some(*wanted)),
            Some(_) => Err(bad_config("defaultRoute must be true or false")),
        }
    }

    /// The hardware address that the pod's end shall have, if that is said.
    pub(crate) fn mac(&self) -> Result<Option<[u8; 6]>, Failure> {
        let runtime = self.runtime_config.as_ref();
        let wanted = runtime.and_then(|runtime| runtime.get("mac"));
        match wanted.or(self.mac.as_ref()) {
            None | Some(Value::Null) => Ok(None),
            Some(wanted) => match wanted.as_str().and_then(hardware_address) {
                Some(mac) => Ok(Some(mac)),
                None => Err(bad_config(
                    "mac must be the hardware address of one station, such as 02:00:5e:10:00:01",
                )),
            },
        }
    }

    fn default_runtime_dir() -> PathBuf {
        PathBuf::from("/run/podmesh")
    }

    fn default_state_dir() -> PathBuf {
        PathBuf::from("/var/lib/podmesh")
    }

    /// The ledger of a configuration that names none.
    pub(crate) fn default_data_dir() -> PathBuf {
        PathBuf::from("/var/lib/cni/podmesh")
    }
}

/// The version that an answer to this input should have, even when the input is wrong otherwise.
pub(crate) fn version_of(input: &[u8]) -> String {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Versioned {
        cni_version: String,
    }
    serde_json::from_slice::<Versioned>(input)
        .ok()
        .map(|versioned| versioned.cni_version)
        .filter(|version| VERSIONS.contains(&version.as_str()))
        .unwrap_or_else(|| NEWEST_VERSION.to_owned())
}

fn identifier(variable: &str, value: Option<String>) -> Result<String, Failure> {
    let value = value.ok_or_else(|| bad_variable(variable, "is not set"))?;
    if is_identifier(&value) {
        Ok(value)
    } else {
        Err(bad_variable(
            variable,
            "must be letters, digits, dots, dashes and underscores, at most 253 of them",
        ))
    }
}

fn is_identifier(value: &str) -> bool {
    let mut bytes = value.bytes();
    bytes
        .next()
        .is_some_and(|first| first.is_ascii_alphanumeric())
        && value.len() <= MAX_ID_BYTES
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'))
}

fn interface_name(value: Option<String>) -> Result<String, Failure> {
    let value = value.ok_or_else(|| bad_variable("CNI_IFNAME", "is not set"))?;
    let possible = value.len() <= MAX_INTERFACE_NAME_BYTES
        && !matches!(value.as_str(), "." | ".." | "lo" | "all" | "default")
        && value
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':' | b'%'));
    if possible {
        Ok(value)
    } else {
        Err(bad_variable(
            "CNI_IFNAME",
            "is no possible name of an interface",
        ))
    }
}

fn hardware_address(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut pairs = text.split(':');
    for byte in &mut mac {
        let pair = pairs.next().filter(|pair| pair.len() == 2)?;
        let is_digits = pair.bytes().all(|digit| digit.is_ascii_hexdigit());
        *byte = is_digits.then(|| u8::from_str_radix(pair, 16).ok())??;
    }
    let is_station = mac[0] & 1 == 0 && mac != [0; 6];
    (pairs.next().is_none() && is_station).then_some(mac)
}

fn bad_variable(name: &str, problem: &str) -> Failure {
    Failure::new(Code::InvalidEnvironment, format!("{name} {problem}"))
}

fn bad_config(problem: &str) -> Failure {
    Failure::new(
        Code::InvalidConfig,
        format!("the network configuration is wrong: {problem}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"{"cniVersion":"1.0.0","name":"podmesh","type":"podmesh"}"#;

    fn parse(verb: &str, id: &str, ifname: &str, config: &str) -> Result<Request, Failure> {
        let variable = |name: &str| match name {
            "CNI_COMMAND" => Some(verb.to_owned()),
            "CNI_CONTAINERID" => Some(id.to_owned()),
            "CNI_IFNAME" => Some(ifname.to_owned()),
            "CNI_NETNS" => Some("/run/netns/x".to_owned()),
            _ => None,
        };
        Request::parse(variable, config.as_bytes())
    }

    #[test]
    fn hostile_names_are_refused() {
        for id in [
            "",
            "../x",
            "a/b",
            ".hidden",
            "-rf",
            "a b",
            "a\0b",
            "a\nb",
            "ä",
            "a$(id)",
            "a;b",
            &"a".repeat(254),
        ] {
            for verb in ["ADD", "DEL", "CHECK"] {
                let failure = parse(verb, id, "eth0", CONFIG).unwrap_err();
                assert_eq!(failure.code(), Code::InvalidEnvironment, "{verb} {id:?}");
            }
        }
        for ifname in [
            "",
            ".",
            "..",
            "a/b",
            "eth 0",
            "eth0:1",
            "sixteen-letters-",
            "eth\n",
            "eth%d",
            "lo",
            "all",
            "default",
        ] {
            let failure = parse("ADD", "abc", ifname, CONFIG).unwrap_err();
            assert_eq!(failure.code(), Code::InvalidEnvironment, "{ifname:?}");
        }
        for name in ["", "../net", "a/b", "net\u{7f}"] {
            let config = CONFIG.replace(r#""podmesh","type""#, &format!("{name:?},\"type\""));
            assert!(parse("ADD", "abc", "eth0", &config).is_err(), "{name:?}");
        }
    }

    #[test]
    fn each_version_knows_its_own_verbs() {
        let with = |version: &str| CONFIG.replace("1.0.0", version);
        for (version, verb, understood) in [
            ("0.3.1", "ADD", true),
            ("0.3.1", "CHECK", false),
            ("0.4.0", "CHECK", true),
            ("1.0.0", "STATUS", false),
            ("1.0.0", "GC", false),
            ("1.1.0", "STATUS", true),
            ("1.1.0", "GC", true),
            ("0.2.0", "ADD", false),
            ("2.0.0", "ADD", false),
            ("", "ADD", false),
            ("0.1.0", "DEL", true),
        ] {
            let parsed = parse(verb, "abc", "eth0", &with(version));
            match parsed {
                Ok(_) => assert!(understood, "{version} {verb}"),
                Err(failure) => {
                    assert!(!understood, "{version} {verb}: {failure:?}");
                    assert_eq!(failure.code(), Code::IncompatibleVersion);
                }
            }
        }
    }

    #[test]
    fn a_configuration_may_hold_keys_of_others() {
        let config = r#"{
            "cniVersion": "1.1.0", "name": "net", "type": "podmesh",
            "capabilities": {"portMappings": true}, "runtimeConfig": {"x": [1]},
            "mtu": 1400, "dataDir": "/tmp/x", "unknown": {"deep": [null]},
            "cni.dev/valid-attachments": [{"containerID": "a", "ifname": "eth0"}]
        }"#;
        let request = parse("GC", "", "", config).unwrap();
        assert_eq!(request.config.mtu, Some(1400));
        assert_eq!(request.config.data_dir, Path::new("/tmp/x"));
        assert_eq!(request.config.runtime_dir, Path::new("/run/podmesh"));
        assert_eq!(request.config.valid_attachments.unwrap().len(), 1);
    }

    #[test]
    fn the_runtimes_hardware_address_goes_before_the_configurations() {
        let mac = |keys: &str| {
            let config = CONFIG.replace('}', &format!(",{keys}}}"));
            parse("ADD", "abc", "eth0", &config).unwrap().config.mac()
        };
        let one = Some([2, 0, 0, 0, 0, 0xa1]);
        assert_eq!(mac(r#""mac":"02:00:00:00:00:A1""#).unwrap(), one);
        let both = r#""mac":"02:00:00:00:00:05","runtimeConfig":{"mac":"02:00:00:00:00:a1"}"#;
        let both = CONFIG.replace(r#""type""#, &format!(r#"{both},"type""#));
        let both = parse("ADD", "abc", "eth0", &both).unwrap();
        assert_eq!(both.config.mac().unwrap(), one);
        for wrong in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:01:02",
            "0:00:00:00:00:001",
        ] {
            assert_eq!(hardware_address(wrong), None, "{wrong}");
        }
        assert_eq!(hardware_address("+2:00:00:00:00:01"), None);
        assert_eq!(hardware_address("00:00:00:00:00:00"), None);
        // What was attached goes, whatever the configuration has become.
        let wrong = CONFIG.replace('}', r#","mac":7,"defaultRoute":[]}"#);
        assert!(parse("DEL", "abc", "eth0", &wrong).is_ok());
    }

    #[test]
    fn wrong_configurations_have_the_code_of_their_kind() {
        for (config, code) in [
            ("", Code::Decoding),
            ("[]", Code::Decoding),
            ("{\"name\": 7}", Code::Decoding),
            (
                r#"{"cniVersion":"1.0.0","name":"n","mtu":1279}"#,
                Code::InvalidConfig,
            ),
            (
                r#"{"cniVersion":"1.0.0","name":"n","dataDir":"x"}"#,
                Code::InvalidConfig,
            ),
            (
                r#"{"cniVersion":"1.0.0","name":"n","defaultRoute":"yes"}"#,
                Code::InvalidConfig,
            ),
            (
                r#"{"cniVersion":"1.0.0","name":"n","mac":"03:00:00:00:00:01"}"#,
                Code::InvalidConfig,
            ),
            (
                r#"{"cniVersion":"1.0.0","name":"n","runtimeConfig":{"mac":7}}"#,
                Code::InvalidConfig,
            ),
        ] {
            let failure = parse("ADD", "abc", "eth0", config).unwrap_err();
            assert_eq!(failure.code(), code, "{config}");
        }
    }
}
