"""The ADM loop and what drives it: in this process, or in every worker of a Ray Train run."""
