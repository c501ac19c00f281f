/**
 * A run's metrics on Weights & Biases, through the two addresses that its own clients use: GraphQL for the run, and a file
 * stream for its history. (Its JavaScript client ends the process on Ctrl-C, and loses what could not be sent at once.)
 */
import { basename } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { mistakeIn } from '../errors.ts';
import { isObject, type JsonObject } from '../json.ts';
import { oneLine, shown } from '../text.ts';
import type { LogEntry, Reporter } from './metrics.ts';
import type { RunFolder } from './run_folder.ts';

export type WandbOptions = { wandbProject?: string | undefined; wandbRunName?: string | undefined };

/** Milliseconds that lines are collected before they are sent, and that an answer may take. */
const [COLLECT, PATIENCE] = [2000, 60_000]; // a long step blocks everything, and that counts
/** How often it is tried at the end. */
const TRIES = 3;

const RUN = `query Run($entity: String, $project: String!, $name: String!) {
  model(name: $project, entityName: $entity) { bucket(name: $name, missingOk: true) { historyLineCount summaryMetrics } }
}`;
const UPSERT = `mutation Upsert($entity: String, $project: String, $name: String, $displayName: String, $config: JSONString) {
  upsertBucket(input: { entityName: $entity, modelName: $project, name: $name, displayName: $displayName, config: $config }) {
    bucket { name project { name entity { name } } }
  }
}`;

/**
 * Opens a run on the server, by the id that it keeps when it is resumed. Whatever goes wrong is said, and ends nothing: all is in
 * metrics.jsonl, of which the next start sends what is missing.
 * @param options - those of the run, which the server keeps too
 * @returns undefined where there is no key, or WANDB_MODE is offline or disabled
 */
export async function createWandb(
  { wandbProject: project = 'grpo-ts', wandbRunName, ...options }: WandbOptions & Record<string, unknown>,
  run: Pick<RunFolder, 'folder' | 'id' | 'history'>,
): Promise<Reporter | undefined> {
  const { WANDB_API_KEY: key, WANDB_MODE: mode, WANDB_ENTITY: entity } = process.env;
  const base = process.env.WANDB_BASE_URL ?? 'https://api.wandb.ai';
  const address = URL.canParse(base) ? new URL(base) : undefined;
  const server = address ? (address.origin + address.pathname).replace(/\/+$/, '') : undefined; // no user, no password
  const here = 'metrics.jsonl has all there is';
  const off = mode === 'offline' || mode === 'disabled';
  if (!key || off || server === undefined) {
    const missing = key ? 'WANDB_BASE_URL is no URL' : 'there is no WANDB_API_KEY, in the environment or in .env';
    console.log(`wandb: ${key && off ? `WANDB_MODE is ${mode}` : missing}: nothing is sent, ${here}`);
    return undefined;
  }
  let isRefused = false; // asking again would not help
  const post = async (path: string, body: object): Promise<unknown> => {
    const response = await fetch(server + path, {
      method: 'POST',
      headers: {
        authorization: `Basic ${Buffer.from(`api:${key}`).toString('base64')}`,
        'content-type': 'application/json',
      },
      body: JSON.stringify(body),
      signal: AbortSignal.timeout(PATIENCE),
    });
    if (!response.ok) {
      isRefused = [400, 401, 403, 404].includes(response.status);
      throw new Error(`${address!.host} answers ${response.status}`);
    }
    return response.json().catch(() => ({}));
  };
  const ask = async (query: string, variables: object): Promise<JsonObject> => {
    const answer = (await post('/graphql', { query, variables })) as { data?: unknown; errors?: unknown };
    if (isObject(answer.data)) return answer.data;
    throw new Error(`${address!.host} answers ${shown(answer.errors ?? null)}`);
  };

  const name = run.id ?? basename(run.folder);
  let stream: string | undefined; // where lines go, once the server knows the run
  let offset = 0; // lines that it has
  let newest = -1; // the last step of these
  const open = async () => {
    const found = (await ask(RUN, { entity, project, name })) as {
      model?: { bucket?: { historyLineCount?: number; summaryMetrics?: string } };
    };
    const { historyLineCount = 0, summaryMetrics = '{}' } = found.model?.bucket ?? {};
    offset = historyLineCount;
    newest = historyLineCount > 0 ? Number(JSON.parse(summaryMetrics)._step ?? -1) : -1;
    const config = Object.fromEntries(Object.entries(options).map(([option, value]) => [option, { value }]));
    const displayName = wandbRunName ?? basename(run.folder);
    const opened = (await ask(UPSERT, { entity, project, name, displayName, config: JSON.stringify(config) })) as {
      upsertBucket: { bucket: { project: { name: string; entity: { name: string } } } };
    };
    const place = opened.upsertBucket.bucket.project;
    stream = `/files/${[place.entity.name, place.name, name].map(encodeURIComponent).join('/')}/file_stream`;
    const page = server.replace('//api.', '//');
    console.log(`wandb: ${page}/${place.entity.name}/${place.name}/runs/${name}`);
  };

  const lines = run.history();
  let sending: Promise<unknown> = Promise.resolve();
  let complaint = '';
  /** Sends what the server has not got. */
  const send = async () => {
    try {
      if (stream === undefined) await open();
      const fresh = lines.filter(({ step }) => step > newest);
      if (fresh.length > 0) {
        const content = fresh.map(({ step, ...entry }) => JSON.stringify({ ...entry, _step: step }));
        const summary = [JSON.stringify({ ...Object.assign({}, ...lines), _step: lines.at(-1)?.step })];
        await post(stream!, {
          files: { 'wandb-history.jsonl': { offset, content }, 'wandb-summary.json': { offset: 0, content: summary } },
        });
        [offset, newest] = [offset + fresh.length, fresh.at(-1)!.step];
      }
      [complaint, isRefused] = ['', false];
    } catch (error) {
      complaint = oneLine(mistakeIn(error) ?? (error as Error).message);
    }
  };
  const inTurn = () => (sending = sending.then(send));
  await inTurn();
  if (complaint) console.log(`wandb: ${complaint}${isRefused ? '' : ': it is tried again'}; ${here}`);
  let timer: NodeJS.Timeout | undefined;
  return {
    log: (entry: LogEntry) => {
      lines.push(entry);
      timer ??= globalThis
        .setTimeout(() => {
          timer = undefined;
          void inTurn();
        }, COLLECT)
        .unref();
    },
    text: () => {}, // the server has no place for texts beside steps
    close: async (isFinished) => {
      clearTimeout(timer);
      for (let tries = 1; tries <= TRIES; tries++) {
        await inTurn();
        if (!complaint || isRefused) break;
        if (tries < TRIES) await setTimeout(COLLECT);
      }
      if (stream !== undefined && !complaint)
        await post(stream, { complete: true, exitcode: isFinished ? 0 : 1 }).catch(() => {});
      const left = lines.filter(({ step }) => step > newest).length;
      if (left > 0) console.log(`wandb: ${left} lines are not sent (${complaint}): ${here}, --resume sends them`);
    },
  };
}
