"""What the HTTP service and the workers share: settings, jobs, the queue and the store.

Knows neither HTTP nor torch. A job's state lives in one Redis hash (`jobs.job_store`) and moves
through one table (`jobs.states`); RQ only carries the job's id to a worker (`jobs.queue`); image
bytes live in a blob store (`jobs.store`) and never in Redis.
"""
