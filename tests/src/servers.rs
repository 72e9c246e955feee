//! Real servers on this machine's loopback, for what a container would only make slower.
//!
//! They are Debian's packages in a root directory of their own, made once, so that
//! nothing is installed on the machine and nothing starts there by itself. Each server
//! has its whole state in a directory that is gone with the test.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::image::target_directory;
use crate::machine::Need;
use crate::process::{Daemon, command, run, wait_until};

/// What they need of the machine.
pub const NEEDS: &[Need] =
    &[("mmdebstrap", &["mmdebstrap"]), ("unshare", &["util-linux"]), ("openssl", &["openssl"])];

const SUITE: &str = "bookworm";
const PACKAGES: &str =
    "postfix,dovecot-imapd,dovecot-pop3d,slapd,mariadb-server,vsftpd,postgresql,nginx-light,haproxy,stunnel4";

/// Enters the root directory `$0`, with the machine's devices and processes, and becomes `$@`.
const ENTER: &str =
    "mount --bind /proc \"$0/proc\" && mount --rbind /dev \"$0/dev\" && exec chroot \"$0\" \"$@\"";

/// Certificate chain and key, as files.
#[derive(Clone, Copy, Debug)]
pub struct Pair<'a> {
    /// PEM, leaf first.
    pub chain: &'a Path,
    /// PEM.
    pub key: &'a Path,
}

/// A directory for servers.
#[derive(Debug)]
pub struct Servers {
    root: PathBuf,
    directory: tempfile::TempDir,
    running: Vec<Daemon>,
}

/// The root directory with the packages, made on the first call.
fn root() -> Result<PathBuf> {
    let cache = target_directory().join("fleet-cache");
    fs::create_dir_all(&cache)?;
    let root =
        cache.join(format!("servers-{}", crate::openssl::sha256(PACKAGES.as_bytes())[..16].to_owned()));
    let lock = File::create(cache.join("servers-lock"))?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)?;
    if root.exists() {
        return Ok(root);
    }
    let half = root.with_extension("half");
    if half.exists() {
        fs::remove_dir_all(&half)?;
    }
    let include = format!("--include={PACKAGES}");
    let words = ["--quiet", "--format=directory", "--variant=minbase", &include, SUITE];
    run(command("mmdebstrap", &words).arg(&half)).context("cannot make the servers' root directory")?;
    fs::rename(&half, &root)?;
    Ok(root)
}

impl Servers {
    /// None yet.
    pub fn new() -> Result<Self> {
        let root = root()?;
        let directory = tempfile::tempdir_in(root.join("srv"))?;
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
        Ok(Self { root, directory, running: Vec::new() })
    }

    /// A path of the machine as the servers know it.
    fn inside(&self, path: &Path) -> Result<String> {
        let below = path.strip_prefix(&self.root)?;
        Ok(Path::new("/").join(below).display().to_string())
    }

    fn run(&self, words: &[&str]) -> Result<()> {
        let root = self.root.display().to_string();
        let enter = ["--mount", "sh", "-c", ENTER, &root];
        run(&mut command("unshare", &[&enter[..], words].concat())).map(drop)
    }

    /// A directory of its own for a server, that belongs to `user`: on the machine, and inside.
    fn place(&self, name: &str, user: &str) -> Result<(PathBuf, String)> {
        let place = self.directory.path().join(name);
        fs::create_dir_all(&place)?;
        let inside = self.inside(&place)?;
        self.run(&["chown", user, &inside])?;
        Ok((place, inside))
    }

    /// A copy of a file that the servers see, readable by `user` only.
    fn copy(&self, from: &Path, to: &Path, user: &str) -> Result<String> {
        fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
        fs::set_permissions(to, fs::Permissions::from_mode(0o600))?;
        let inside = self.inside(to)?;
        self.run(&["chown", user, &inside])?;
        Ok(inside)
    }

    /// The pair, in the server's place.
    fn pair(&self, place: &Path, pair: Pair, user: &str) -> Result<(String, String)> {
        let chain = self.copy(pair.chain, &place.join("chain.pem"), user)?;
        Ok((chain, self.copy(pair.key, &place.join("key.pem"), user)?))
    }

    /// The two lines by which nginx finds a pair.
    pub fn for_nginx(&self, name: &str, pair: Pair) -> Result<String> {
        let (place, _) = self.place(name, "root")?;
        let (chain, key) = self.pair(&place, pair, "root")?;
        Ok(format!("ssl_certificate {chain}; ssl_certificate_key {key};"))
    }

    /// A file that the servers shall see.
    pub fn file(&self, name: &str, from: &Path) -> Result<String> {
        self.copy(from, &self.directory.path().join(name), "root")
    }

    fn start(&mut self, name: &str, words: &[&str], ports: &[u16]) -> Result<()> {
        let log = self.directory.path().join(format!("{name}.log"));
        let root = self.root.display().to_string();
        let enter = ["--mount", "sh", "-c", ENTER, &root];
        let mut daemon = Daemon::start(name, &command("unshare", &[&enter[..], words].concat()), &log)?;
        for port in ports {
            wait_until(&format!("{name} on port {port}"), Duration::from_secs(30), || {
                daemon.check()?;
                Ok(TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], *port)))?)
            })?;
        }
        self.running.push(daemon);
        Ok(())
    }

    /// nginx with these `server` blocks.
    pub fn nginx(&mut self, name: &str, ports: &[u16], blocks: &str) -> Result<()> {
        let (place, inside) = self.place(name, "root")?;
        let configuration = format!(
            "user root; daemon off; worker_processes 1; pid {0}/pid; error_log {0}/error.log;\nevents {{}}\n\
             http {{ access_log off; ssl_protocols TLSv1.2 TLSv1.3; client_body_temp_path {0}; proxy_temp_path {0}; fastcgi_temp_path {0}; \
             uwsgi_temp_path {0}; scgi_temp_path {0};\n{blocks}\n}}\n",
            inside
        );
        let file = place.join("nginx.conf");
        fs::write(&file, configuration)?;
        self.start(name, &["nginx", "-c", &self.inside(&file)?], ports)
    }

    /// HAProxy that answers only those with a certificate of `clients`.
    pub fn haproxy(&mut self, port: u16, pair: Pair, clients: &Path) -> Result<()> {
        let (place, inside) = self.place("haproxy", "root")?;
        fs::write(place.join("site.pem"), fs::read_to_string(pair.chain)? + &fs::read_to_string(pair.key)?)?;
        let clients = self.file("clients.pem", clients)?;
        let configuration = format!(
            "defaults\n  mode http\n  timeout connect 5s\n  timeout client 5s\n  timeout server 5s\n\
             frontend tls\n  bind 127.0.0.1:{port} ssl crt {inside}/site.pem ca-file {clients} verify required\n  \
             http-request return status 200\n"
        );
        let file = place.join("haproxy.cfg");
        fs::write(&file, configuration)?;
        self.start("haproxy", &["haproxy", "-db", "-f", &self.inside(&file)?], &[port])
    }

    /// stunnel that answers only those with a certificate of `clients`.
    pub fn stunnel(&mut self, port: u16, pair: Pair, clients: &Path) -> Result<()> {
        let (place, _) = self.place("stunnel", "root")?;
        let (chain, key) = self.pair(&place, pair, "root")?;
        let clients = self.file("clients.pem", clients)?;
        let configuration = format!(
            "foreground = yes\npid =\n[tls]\naccept = 127.0.0.1:{port}\nconnect = 127.0.0.1:1\n\
             cert = {chain}\nkey = {key}\nCAfile = {clients}\nverifyChain = yes\nrequireCert = yes\n"
        );
        let file = place.join("stunnel.conf");
        fs::write(&file, configuration)?;
        self.start("stunnel", &["stunnel4", &self.inside(&file)?], &[port])
    }

    /// Postfix: SMTP with STARTTLS.
    pub fn postfix(&mut self, port: u16, pair: Pair) -> Result<()> {
        let (place, inside) = self.place("postfix", "root")?;
        let (chain, key) = self.pair(&place, pair, "root")?;
        for (below, user) in [("queue", "root"), ("data", "postfix"), ("etc", "root")] {
            fs::create_dir_all(place.join(below))?;
            self.run(&["chown", user, &format!("{inside}/{below}")])?;
        }
        let etc = place.join("etc");
        let main = format!(
            "compatibility_level = 3.6\nqueue_directory = {inside}/queue\ndata_directory = {inside}/data\n\
             maillog_file_prefixes = {inside}\nmaillog_file = {inside}/log\ninet_interfaces = 127.0.0.1\n\
             inet_protocols = ipv4\nmyhostname = mx.test\nmydestination =\n\
             smtpd_tls_chain_files = {key}, {chain}\nsmtpd_tls_security_level = may\n"
        );
        fs::write(etc.join("main.cf"), main)?;
        let master = format!(
            "127.0.0.1:{port} inet n - n - - smtpd\npostlog unix-dgram n - n - 1 postlogd\n\
             tlsmgr unix - - n 1000? 1 tlsmgr\nanvil unix - - n - 1 anvil\ncleanup unix n - n - 0 cleanup\n\
             qmgr unix n - n 300 1 qmgr\nrewrite unix - - n - - trivial-rewrite\npickup unix n - n 60 1 pickup\n\
             proxymap unix - - n - - proxymap\nbounce unix - - n - 0 bounce\n"
        );
        fs::write(etc.join("master.cf"), master)?;
        let etc = format!("{inside}/etc");
        // It makes what is below the queue; the daemon alone does not.
        self.run(&["postfix", "-c", &etc, "check"])?;
        self.start("postfix", &["/usr/lib/postfix/sbin/master", "-c", &etc, "-d"], &[port])
    }

    /// Dovecot: IMAP with STARTTLS and POP3 with STLS.
    pub fn dovecot(&mut self, imap: u16, pop3: u16, pair: Pair) -> Result<()> {
        let (place, inside) = self.place("dovecot", "root")?;
        let (chain, key) = self.pair(&place, pair, "root")?;
        let configuration = format!(
            "base_dir = {0}/run\nstate_dir = {0}/state\nlog_path = /dev/stderr\nprotocols = imap pop3\n\
             listen = 127.0.0.1\nssl = yes\nssl_cert = <{chain}\nssl_key = <{key}\n\
             service imap-login {{\n inet_listener imap {{\n port = {imap}\n }}\n inet_listener imaps {{\n port = 0\n }}\n}}\n\
             service pop3-login {{\n inet_listener pop3 {{\n port = {pop3}\n }}\n inet_listener pop3s {{\n port = 0\n }}\n}}\n\
             passdb {{\n driver = static\n args = nopassword=y\n}}\nuserdb {{\n driver = static\n args = uid=mail gid=mail home=/tmp\n}}\n",
            inside
        );
        let file = place.join("dovecot.conf");
        fs::write(&file, configuration)?;
        self.start("dovecot", &["dovecot", "-F", "-c", &self.inside(&file)?], &[imap, pop3])
    }

    /// OpenLDAP's server, with nothing in it.
    pub fn slapd(&mut self, port: u16, pair: Pair) -> Result<()> {
        let (place, inside) = self.place("slapd", "root")?;
        let (chain, key) = self.pair(&place, pair, "root")?;
        let file = place.join("slapd.conf");
        fs::write(
            &file,
            format!(
                "include /etc/ldap/schema/core.schema\npidfile {}/pid\n\
                 TLSCertificateFile {chain}\nTLSCertificateKeyFile {key}\n",
                inside
            ),
        )?;
        let url = format!("ldap://127.0.0.1:{port}");
        self.start("slapd", &["slapd", "-d", "0", "-h", &url, "-f", &self.inside(&file)?], &[port])
    }

    /// vsftpd.
    pub fn vsftpd(&mut self, port: u16, pair: Pair) -> Result<()> {
        let (place, inside) = self.place("vsftpd", "root")?;
        let (chain, key) = self.pair(&place, pair, "root")?;
        fs::create_dir_all(place.join("empty"))?;
        let configuration = format!(
            "listen=YES\nlisten_address=127.0.0.1\nlisten_port={port}\nbackground=NO\nanonymous_enable=YES\n\
             ssl_enable=YES\nrsa_cert_file={chain}\nrsa_private_key_file={key}\nssl_ciphers=HIGH\n\
             secure_chroot_dir={}/empty\n",
            inside
        );
        let file = place.join("vsftpd.conf");
        fs::write(&file, configuration)?;
        self.start("vsftpd", &["vsftpd", &self.inside(&file)?], &[port])
    }

    /// PostgreSQL, with an empty cluster.
    pub fn postgres(&mut self, port: u16, pair: Pair) -> Result<()> {
        let (place, inside) = self.place("postgres", "postgres")?;
        let (chain, key) = self.pair(&place, pair, "postgres")?;
        let version =
            fs::read_dir(self.root.join("usr/lib/postgresql"))?.next().context("no PostgreSQL")??;
        let version = version.file_name().to_string_lossy().into_owned();
        let program = |name: &str| format!("/usr/lib/postgresql/{version}/bin/{name}");
        let (initdb, postgres) = (program("initdb"), program("postgres"));
        let data = format!("{inside}/data");
        let as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"];
        let init = [initdb.as_str(), "-D", &data, "-A", "trust", "--no-sync"];
        self.run(&[&as_user[..], &init].concat())?;
        let port_word = port.to_string();
        let (cert, key) = (format!("ssl_cert_file={chain}"), format!("ssl_key_file={key}"));
        let settings = [
            "-D",
            &data,
            "-p",
            &port_word,
            "-k",
            &inside,
            "-h",
            "127.0.0.1",
            "-c",
            "ssl=on",
            "-c",
            &cert,
            "-c",
            &key,
        ];
        self.start("postgres", &[&as_user[..], &[postgres.as_str()], &settings[..]].concat(), &[port])
    }

    /// MariaDB that takes `errors` broken connections from an address and then refuses it.
    /// It knows one user, who may come from everywhere.
    pub fn mariadb(&mut self, port: u16, pair: Pair, errors: u32) -> Result<()> {
        let (place, inside) = self.place("mariadb", "mysql")?;
        let (chain, key) = self.pair(&place, pair, "mysql")?;
        let datadir = format!("--datadir={inside}/data");
        let init = ["mariadb-install-db", "--no-defaults", "--user=mysql", "--skip-test-db", &datadir];
        self.run(&init)?;
        fs::write(place.join("start.sql"), "CREATE USER app@'%' IDENTIFIED BY 'x';\n")?;
        let words = [
            "mariadbd".to_owned(),
            "--no-defaults".to_owned(),
            "--user=mysql".to_owned(),
            datadir,
            format!("--socket={inside}/socket"),
            format!("--pid-file={inside}/pid"),
            format!("--init-file={inside}/start.sql"),
            format!("--port={port}"),
            format!("--max-connect-errors={errors}"),
            format!("--ssl-cert={chain}"),
            format!("--ssl-key={key}"),
        ];
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        self.start("mariadb", &words, &[port])
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for mut daemon in std::mem::take(&mut self.running) {
            // Those with children take them along.
            daemon.stop(Duration::from_secs(10));
        }
    }
}

/// A port that nobody uses on this machine's loopback.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
