//! Which rank this process is: told by whoever started it, in variables of the environment.
//!
//! The contract is torchrun's: `RANK`, `WORLD_SIZE`, `MASTER_ADDR`, `MASTER_PORT`. Where `RANK` or `WORLD_SIZE` are missing, those of Slurm's
//! `srun` and of Open MPI's `mpirun` stand in. Slurm's count only inside a step of `srun`: a batch script has `SLURM_PROCID = 0` and
//! the number of tasks of the whole job, though it is alone.
//!
//! With `TORCHELASTIC_USE_AGENT_STORE` torchrun's agent itself listens at `MASTER_PORT`, so ranks meet at the port after it, or at `DDPM_PORT`.

use crate::error::CollectiveError;

/// Where ranks meet if no port is given anywhere: torchrun's usual 29500 and one.
const USUAL_PORT: u16 = 29501;

/// A launcher's names for a rank's number and for how many there are.
struct Names {
    rank: &'static str,
    world: &'static str,
    /// Counts only where this is set.
    inside: &'static str,
}

const OTHERS: [Names; 2] = [
    Names { rank: "SLURM_PROCID", world: "SLURM_NTASKS", inside: "SLURM_STEP_ID" },
    Names { rank: "OMPI_COMM_WORLD_RANK", world: "OMPI_COMM_WORLD_SIZE", inside: "OMPI_COMM_WORLD_RANK" },
];

/// Which rank this process is, and where it meets the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// From 0.
    pub rank: usize,
    /// How many ranks there are, at least two.
    pub world: usize,
    /// The host of rank 0.
    pub address: String,
    /// Where rank 0 listens.
    pub port: u16,
    /// How often the launcher has started the ranks again (`TORCHELASTIC_RESTART_COUNT`).
    pub restarts: u64,
    /// The launcher's name of this run (`TORCHELASTIC_RUN_ID`, `SLURM_JOB_ID`); empty if it gives none.
    pub run: String,
}

/// A number, and the variable that it is from.
type Found = (u64, &'static str);

impl Launch {
    /// Reads the variables, each through `variable`; `None` for a process that is alone.
    ///
    /// # Errors
    /// Variables that contradict each other, or that are no numbers.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, CollectiveError> {
        let read = |name| variable(name).filter(|value| !value.is_empty());
        let rank = number(&read, "RANK")?;
        let world = number(&read, "WORLD_SIZE")?;
        let (mut ranks, mut worlds) = (Vec::new(), Vec::new());
        for Names { rank, world, inside } in &OTHERS {
            if read(inside).is_some() {
                ranks.extend(number(&read, rank)?);
                worlds.extend(number(&read, world)?);
            }
        }
        let rank = one("RANK", rank, &ranks)?;
        let world = one("WORLD_SIZE", world, &worlds)?;
        let (Some((rank, rank_from)), Some((world, world_from))) = (rank, world) else {
            return match (rank, world) {
                (Some((_, from)), None) => Err(incomplete(from, "WORLD_SIZE")),
                (None, Some((2.., from))) => Err(incomplete(from, "RANK")),
                _ => Ok(None),
            };
        };
        if rank >= world {
            let message = format!(
                "{rank_from} = {rank}, but {world_from} = {world}: expected ranks from 0 to one less than that"
            );
            return Err(CollectiveError::Variables {
                message,
                help: "start every process with a number of its own".into(),
            });
        }
        if world == 1 {
            return Ok(None);
        }
        let address = read("MASTER_ADDR").ok_or_else(|| CollectiveError::Variables {
            message: format!("{world_from} = {world}, but MASTER_ADDR is not set: expected the host of rank 0"),
            help: "on one machine MASTER_ADDR=127.0.0.1; under Slurm export MASTER_ADDR=$(scontrol show hostnames \
                   \"$SLURM_JOB_NODELIST\" | head -n 1) before srun; to train alone set RANK=0 WORLD_SIZE=1"
                .into(),
        })?;
        let restarts = number(&read, "TORCHELASTIC_RESTART_COUNT")?.map_or(0, |(count, _)| count);
        let run = read("TORCHELASTIC_RUN_ID").or_else(|| read("SLURM_JOB_ID")).unwrap_or_default();
        let port = port(&read)?;
        Ok(Some(Self { rank: rank as usize, world: world as usize, address, port, restarts, run }))
    }

    /// Where the ranks meet, for a person.
    pub fn place(&self) -> String {
        format!("{}:{}", self.address, self.port)
    }
}

/// The value of `name`: its own, or that of the other launchers, where they agree.
fn one(name: &'static str, own: Option<Found>, others: &[Found]) -> Result<Option<Found>, CollectiveError> {
    if own.is_some() {
        return Ok(own);
    }
    match others {
        [(a, first), (b, second), ..] if a != b => Err(CollectiveError::Variables {
            message: format!("{first} = {a}, but {second} = {b}: two launchers contradict each other"),
            help: format!("set {name}, which counts before both"),
        }),
        others => Ok(others.first().copied()),
    }
}

/// A port of our own.
fn port(read: &impl Fn(&'static str) -> Option<String>) -> Result<u16, CollectiveError> {
    let found = number(read, "DDPM_PORT")?;
    let after = number(read, "MASTER_PORT")?.map(|(port, from)| (port + 1, from));
    let Some((port, from)) = found.or(after) else { return Ok(USUAL_PORT) };
    u16::try_from(port).ok().filter(|&port| port > 0).ok_or_else(|| CollectiveError::Variables {
        message: format!("{from} gives port {port}: expected one from 1 to 65535"),
        help: "the ranks meet at DDPM_PORT, or at the port after MASTER_PORT".into(),
    })
}

fn number(
    read: &impl Fn(&'static str) -> Option<String>,
    name: &'static str,
) -> Result<Option<Found>, CollectiveError> {
    let Some(text) = read(name) else { return Ok(None) };
    match text.trim().parse::<u32>() {
        Ok(number) => Ok(Some((number.into(), name))),
        Err(_) => Err(CollectiveError::Variables {
            message: format!("{name} = {text:?}: expected a number"),
            help: format!("unset {name}, or let the launcher set it"),
        }),
    }
}

fn incomplete(there: &str, missing: &str) -> CollectiveError {
    CollectiveError::Variables {
        message: format!("{there} is set, but {missing} is not"),
        help: "RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are set together, or none of them".into(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn launch(variables: &[(&str, &str)]) -> Result<Option<Launch>, String> {
        let read =
            |name: &str| variables.iter().find(|(there, _)| *there == name).map(|(_, value)| (*value).to_owned());
        Launch::from_variables(read).map_err(|error| error.to_string())
    }

    const TORCHRUN: [(&str, &str); 7] = [
        ("RANK", "1"),
        ("LOCAL_RANK", "1"),
        ("WORLD_SIZE", "4"),
        ("MASTER_ADDR", "node1"),
        ("MASTER_PORT", "29500"),
        ("TORCHELASTIC_RESTART_COUNT", "3"),
        ("TORCHELASTIC_RUN_ID", "none"),
    ];

    #[test]
    fn without_variables_a_process_is_alone() {
        assert_eq!(launch(&[]), Ok(None));
        assert_eq!(launch(&[("RANK", "0"), ("WORLD_SIZE", "1")]), Ok(None));
        assert_eq!(launch(&[("WORLD_SIZE", "1")]), Ok(None));
        assert_eq!(launch(&[("RANK", ""), ("WORLD_SIZE", "")]), Ok(None));
    }

    #[test]
    fn torchrun_is_understood_and_keeps_its_port() {
        let want = Launch { rank: 1, world: 4, address: "node1".into(), port: 29501, restarts: 3, run: "none".into() };
        assert_eq!(launch(&TORCHRUN), Ok(Some(want)));
        let with_port = [&TORCHRUN[..], &[("DDPM_PORT", "777")]].concat();
        assert_eq!(launch(&with_port).unwrap().unwrap().port, 777);
    }

    #[test]
    fn slurm_and_mpi_are_understood_and_an_explicit_rank_wins() {
        let slurm = [("SLURM_PROCID", "2"), ("SLURM_NTASKS", "3"), ("SLURM_STEP_ID", "0"), ("MASTER_ADDR", "a")];
        let found = launch(&slurm).unwrap().unwrap();
        assert_eq!((found.rank, found.world, found.port), (2, 3, USUAL_PORT));
        let explicit = [&slurm[..], &[("RANK", "1"), ("WORLD_SIZE", "2")]].concat();
        let found = launch(&explicit).unwrap().unwrap();
        assert_eq!((found.rank, found.world), (1, 2));
        let mpi = [("OMPI_COMM_WORLD_RANK", "0"), ("OMPI_COMM_WORLD_SIZE", "2"), ("MASTER_ADDR", "a")];
        assert_eq!(launch(&mpi).unwrap().unwrap().world, 2);
    }

    #[test]
    fn a_batch_script_of_slurm_is_alone_though_its_job_has_several_tasks() {
        assert_eq!(launch(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "4")]), Ok(None));
    }

    #[test]
    fn contradictions_name_the_variables() {
        let refused = |variables: &[(&str, &str)]| launch(variables).unwrap_err();
        assert!(refused(&[("RANK", "0")]).contains("RANK is set, but WORLD_SIZE is not"));
        assert!(refused(&[("WORLD_SIZE", "2")]).contains("WORLD_SIZE is set, but RANK is not"));
        assert!(refused(&[("RANK", "2"), ("WORLD_SIZE", "2")]).contains("RANK = 2, but WORLD_SIZE = 2"));
        assert!(refused(&[("RANK", "x"), ("WORLD_SIZE", "2")]).contains("RANK = \"x\""));
        assert!(refused(&[("RANK", "0"), ("WORLD_SIZE", "2")]).contains("MASTER_ADDR is not set"));
        let both =
            [("SLURM_STEP_ID", "0"), ("SLURM_PROCID", "0"), ("SLURM_NTASKS", "2"), ("OMPI_COMM_WORLD_RANK", "1")];
        assert!(refused(&both).contains("SLURM_PROCID = 0, but OMPI_COMM_WORLD_RANK = 1"));
        let far = [("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "a"), ("MASTER_PORT", "65535")];
        assert!(refused(&far).contains("MASTER_PORT gives port 65536"));
    }
}
