/** A run that was started from a model of the hub goes on with the commit that it was started from. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { FIRST, hub, ID, pathsAt, printed, requests, root, SECOND, tiny } from '../../testing/hub.ts';
import { writeTestData } from '../../testing/model.ts';
import { dispose, start } from '../../testing/runs.ts';
import { writeLora } from '../checkpoint/lora_files.ts';
import { readConfig } from '../model/config.ts';
import { createLora } from '../model/lora.ts';

/** Starts a run, or resumes it, and ends before its first step. @returns what config.json says of the model */
async function begin(...line: string[]) {
  const { run, state, source } = await start(line);
  dispose(state);
  const { origin } = JSON.parse(readFileSync(join(run.folder.folder, 'config.json'), 'utf8'));
  return { origin, folder: run.folder.folder, snapshot: source.folder };
}

it.each([ID, `${ID}@main`])('%s, whatever has become of main', async (name) => {
  writeTestData(join(root, 'data.jsonl'), 4);
  const started = await begin(
    '--model-name',
    name,
    '--dataset',
    join(root, 'data.jsonl'),
    '--output-dir',
    join(root, 'run'),
  );
  expect(started.origin.model.name).toBe(`${ID}@${FIRST}`);

  const weights = Buffer.from(tiny['model.safetensors']);
  weights[weights.length - 1] ^= 1;
  hub.commits[SECOND] = { ...tiny, 'model.safetensors': weights };
  hub.branches.main = SECOND;
  requests.length = 0;
  const resumed = await begin('--resume', started.folder);
  expect(resumed).toEqual(started);
  expect(pathsAt('hub')).not.toContain(`/api/models/${ID}/revision/main`);
  expect(printed.join('\n')).not.toContain('other options');

  const other = await begin('--resume', started.folder, '--model-name', `${ID}@${SECOND}`).catch((error) => error);
  expect(other.message).toBe(
    `${ID}@${SECOND} is not what ${started.folder} was started from (${ID}@${FIRST}): its model.safetensors differs; leave out --model-name, or start a new run`,
  );
});

it('an adapter, and the commit of the model below it', async () => {
  const config = await readConfig('models/tiny');
  const lora = createLora(config, { rank: 1, alpha: 1, targets: ['q_proj'], seed: 0, base: ID });
  await writeLora(join(root, 'adapter'), lora);
  writeTestData(join(root, 'data.jsonl'), 4);
  const line = ['--model-name', join(root, 'adapter'), '--dataset', join(root, 'data.jsonl')];
  const started = await begin(...line, '--output-dir', join(root, 'run'));
  expect(started.origin.model.name).toBe(`${ID}@${FIRST}`);
  hub.commits[SECOND] = { ...tiny, 'generation_config.json': Buffer.from('{}') };
  hub.branches.main = SECOND;
  expect(await begin('--resume', started.folder)).toEqual(started);
});
