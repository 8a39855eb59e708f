//! `shoal service create`.

use std::time::Duration;

use clap::ValueEnum;
use shoal_api::{
    ContainerSpec, CreateServiceRequest, EndpointSpec, RestartCondition, RestartPolicy, Service,
    ServiceSpec, TaskSpec, validate,
};
use tonic::Code;

use super::converge::{self, Goal};
use super::names;
use crate::cli::client::Client;
use crate::cli::human::parse_duration;
use crate::cli::publish::{self, Ports};
use crate::cli::say;

/// Flags and arguments of `shoal service create`.
#[derive(clap::Args)]
pub struct Args {
    /// Name of the service [default: a random one].
    #[arg(long)]
    name: Option<String>,
    /// How many tasks to run.
    #[arg(long, default_value_t = 1)]
    replicas: u64,
    /// How tasks are counted.
    #[arg(long, value_enum, default_value_t = Mode::Replicated)]
    mode: Mode,
    /// Publish a port on every node: 8080:80, 8080:80/udp, 80, or
    /// published=8080,target=80,protocol=tcp.
    #[arg(short, long, value_name = "PORT", value_parser = publish::parse)]
    publish: Vec<Ports>,
    /// Set an environment variable; without a value it is taken from this environment.
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Set a label of the service.
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    label: Vec<String>,
    /// Working directory inside the task.
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// Return at once instead of waiting until the service has converged.
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
        default_value_t = false, action = clap::ArgAction::Set)]
    detach: bool,
    /// Print no progress.
    #[arg(short, long)]
    quiet: bool,
    /// When a task that ended is replaced.
    #[arg(long, value_enum, default_value_t = Condition::Any)]
    restart_condition: Condition,
    /// How long after its end a task is replaced [default: 5s].
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    restart_delay: Option<Duration>,
    /// How long a task may take to stop before it is killed [default: 10s].
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    stop_grace_period: Option<Duration>,
    /// Image (rootfs:/DIR), and the command that runs in it. All that follows the image is the
    /// command's, also what begins with a dash.
    #[arg(required = true, trailing_var_arg = true, value_name = "IMAGE")]
    image_and_command: Vec<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Mode {
    Replicated,
}

#[derive(Clone, Copy, ValueEnum)]
enum Condition {
    Any,
    OnFailure,
    None,
}

/// A random name that is taken is drawn again so many times.
const NAMES_MAX: usize = 10;

/// Creates the service, prints its id and waits until it has converged.
///
/// # Errors
/// What the spec breaks, what the daemon answered, or why no task could run at all.
pub async fn run(client: &Client, args: Args) -> anyhow::Result<()> {
    let (detach, quiet, named) = (args.detach, args.quiet, args.name.is_some());
    let spec = spec(args, |name| std::env::var(name).ok());
    // Said here too, so that a wrong spec is told even where no daemon runs.
    validate::service_spec(&spec)?;
    let service = create(client, spec, named).await?;
    say(&format!("{}\n", service.id));
    match detach {
        true => Ok(()),
        false => converge::wait(client, service, Goal::Creation { quiet }).await,
    }
}

async fn create(client: &Client, mut spec: ServiceSpec, named: bool) -> anyhow::Result<Service> {
    let mut control = client.control().await?;
    for attempt in 1.. {
        let request = CreateServiceRequest { spec: Some(spec.clone()) };
        match control.create_service(request).await {
            Ok(answer) => return Ok(answer.into_inner().service.unwrap_or_default()),
            Err(status)
                if status.code() == Code::AlreadyExists && !named && attempt < NAMES_MAX =>
            {
                spec.name = names::random();
            }
            Err(status) => return Err(status.into()),
        }
    }
    unreachable!("the last attempt returns")
}

fn spec(args: Args, variable: impl Fn(&str) -> Option<String>) -> ServiceSpec {
    let Mode::Replicated = args.mode;
    let mut words = args.image_and_command.into_iter();
    let container = ContainerSpec {
        image: words.next().unwrap_or_default(),
        command: Vec::new(),
        args: words.collect(),
        env: args.env.into_iter().filter_map(|entry| env(entry, &variable)).collect(),
        dir: args.workdir.unwrap_or_default(),
        stop_grace_period_ns: args.stop_grace_period.map(nanos),
    };
    let condition = match args.restart_condition {
        Condition::Any => RestartCondition::Any,
        Condition::OnFailure => RestartCondition::OnFailure,
        Condition::None => RestartCondition::None,
    };
    let restart =
        RestartPolicy { condition: condition.into(), delay_ns: args.restart_delay.map(nanos) };
    let ports: Vec<_> = args.publish.into_iter().flat_map(|ports| ports.0).collect();
    let label = |label: String| match label.split_once('=') {
        Some((key, value)) => (key.to_owned(), value.to_owned()),
        None => (label, String::new()),
    };
    ServiceSpec {
        name: args.name.unwrap_or_else(names::random),
        labels: args.label.into_iter().map(label).collect(),
        task: Some(TaskSpec {
            container: Some(container),
            restart: Some(restart),
            force_update: 0,
        }),
        replicas: args.replicas,
        endpoint: (!ports.is_empty()).then_some(EndpointSpec { ports }),
    }
}

/// `NAME` alone takes its value from here; one that is not set here is left out, as Docker does.
fn env(entry: String, variable: impl Fn(&str) -> Option<String>) -> Option<String> {
    if entry.contains('=') || entry.is_empty() {
        return Some(entry);
    }
    variable(&entry).map(|value| format!("{entry}={value}"))
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    fn parsed(line: &str) -> ServiceSpec {
        let command = Command::try_parse_from(std::iter::once("create").chain(line.split(' ')));
        let command = command.unwrap_or_else(|error| panic!("{line}: {error}"));
        spec(command.args, |name| (name == "HOME").then(|| "/root".to_owned()))
    }

    #[test]
    fn all_after_the_image_is_the_commands() {
        let spec = parsed("--name web rootfs:/ /bin/x --port 80 -d --name y -- -e");
        let container = spec.task.unwrap().container.unwrap();
        assert_eq!(spec.name, "web");
        assert_eq!(container.image, "rootfs:/");
        assert_eq!(container.args, ["/bin/x", "--port", "80", "-d", "--name", "y", "--", "-e"]);
    }

    #[test]
    fn flags_become_the_spec() {
        let spec = parsed(
            "--name=web --replicas 3 -p 8080:80 -p 53-54:53-54/udp -e A=b=c -e HOME -e GONE -l k=v \
             --restart-condition on-failure --restart-delay 1m30s --stop-grace-period=500ms -d \
             rootfs:/srv",
        );
        let task = spec.task.clone().unwrap();
        let container = task.container.clone().unwrap();
        assert_eq!(container.env, ["A=b=c", "HOME=/root"]);
        assert_eq!(container.stop_grace_period_ns, Some(500_000_000));
        assert_eq!(task.restart.unwrap().delay_ns, Some(90_000_000_000));
        assert_eq!(task.restart.unwrap().condition(), RestartCondition::OnFailure);
        assert_eq!(
            publish::show(&spec.endpoint.unwrap().ports),
            "*:8080->80/tcp, *:53-54->53-54/udp"
        );
        assert_eq!((spec.replicas, spec.labels["k"].as_str()), (3, "v"));
    }

    #[test]
    fn what_is_not_said_is_not_in_the_spec() {
        let spec = parsed("rootfs:/");
        let task = spec.task.clone().unwrap();
        assert_eq!((spec.replicas, spec.endpoint.is_none()), (1, true));
        assert_eq!(task.restart.unwrap().delay_ns, None);
        assert_eq!(task.container.clone().unwrap().stop_grace_period_ns, None);
        assert_eq!(validate::service_spec(&spec), Ok(()), "{}: a random name is valid", spec.name);
    }

    #[test]
    fn detach_takes_a_value_as_dockers_does() {
        for (line, expected) in
            [("-d rootfs:/", true), ("--detach=false rootfs:/", false), ("rootfs:/", false)]
        {
            let command = Command::try_parse_from(std::iter::once("c").chain(line.split(' ')));
            assert_eq!(command.map_err(|error| error.to_string()).unwrap().args.detach, expected);
        }
    }
}
