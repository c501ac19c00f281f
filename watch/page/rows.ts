/** Completions as cards. */
import type { ToldRow } from '../told.ts';
import { brief, element, signed, visible } from './dom.ts';

/** What the tokens are shaded by. */
export const SHADES = ['log-prob', 'advantage', 'weight', 'nothing'] as const;
export type Shade = (typeof SHADES)[number];

/** What the shades mean. */
export const MEANINGS: Record<Shade, string> = {
  'log-prob': 'stronger: less likely when it was sampled',
  advantage: 'blue: becomes more likely, red: less; stronger: by more',
  weight: 'what the token weighs in the loss: blue up, red down; the strongest of its column is full',
  nothing: '',
};

/** What has the full shade, whatever its sign. */
export type Most = { advantage: number; weight: number };

const percent = (logProb: number): string => {
  const share = 100 * Math.exp(logProb);
  return `${share < 10 ? share.toPrecision(2) : share.toFixed(0)} %`;
};

/** How much of its shade token t has, from 0 to 1, and which. */
function shadeOf(t: number, { logProbs, advantage = 0, weights }: ToldRow, shade: Shade, most: Most): [string, number] {
  const logProb = logProbs![t];
  if (logProb === null) return ['tool', 0];
  if (shade === 'log-prob') return ['surprise', 1 - Math.exp(Math.min(0, logProb))];
  if (shade === 'nothing') return ['', 0];
  const value = shade === 'advantage' ? advantage : (weights?.[t] ?? 0);
  return [value < 0 ? 'worse' : 'better', most[shade] > 0 ? Math.abs(value) / most[shade] : 0];
}

/** The text of a completion: its tokens, where they are known. */
function textOf(row: ToldRow, shade: Shade, most: Most = { advantage: 0, weight: 0 }): HTMLElement {
  const { pieces, logProbs, weights } = row;
  if (!pieces || !logProbs) return element('p', { class: 'text', dir: 'auto' }, visible(row.completion));
  const tokens = pieces.map((piece, t) => {
    const [kind, share] = shadeOf(t, row, shade, most);
    const logProb = logProbs[t];
    const weight = weights ? `, weight ${signed(weights[t])}` : '';
    const title = logProb === null ? 'a tool wrote it' : `log-prob ${brief(logProb)}, ${percent(logProb)}${weight}`;
    const token = element('span', { class: `token ${kind}`, title }, visible(piece));
    if (share > 0.005) token.style.setProperty('--share', `${Math.round(100 * share)}%`);
    return token;
  });
  return element('p', { class: 'text' }, ...tokens);
}

/** How many tokens there are, and each of them, made when that is asked for. */
function tokensOf({ tokens, pieces, logProbs, weights }: ToldRow): HTMLElement {
  const number = tokens ?? pieces?.length ?? '?';
  const count = `${number} ${number === 1 ? 'token' : 'tokens'}`;
  if (!pieces || !logProbs) return element('small', {}, count);
  const details = element('details', {}, element('summary', {}, count));
  details.addEventListener(
    'toggle',
    () => {
      const cells = (...texts: string[]) => texts.map((text) => element('td', {}, text));
      const rows = pieces.map((piece, t) => {
        const logProb = logProbs[t];
        const numbers = logProb === null ? ['', 'a tool’s'] : [brief(logProb), percent(logProb)];
        if (weights) numbers.push(signed(weights[t]));
        return element('tr', {}, ...cells(visible(piece).replaceAll('\n', '⏎'), ...numbers));
      });
      const head = ['token', 'log-prob', 'probability', ...(weights ? ['weight'] : [])].map((text) =>
        element('th', { scope: 'col' }, text),
      );
      details.append(
        element('table', {}, element('thead', {}, element('tr', {}, ...head)), element('tbody', {}, ...rows)),
      );
    },
    { once: true },
  );
  return details;
}

/** An advantage as a bar, to the right of zero or to its left. */
function barOf(advantage: number, most: number): HTMLElement {
  const bar = element(
    'span',
    { class: `bar ${advantage < 0 ? 'worse' : 'better'}`, 'aria-hidden': 'true' },
    element('i'),
  );
  bar.style.setProperty('--length', `${most > 0 ? (50 * Math.abs(advantage)) / most : 0}%`);
  return bar;
}

/** What the advantages of a group come from. */
export function rewardsOf(rows: ToldRow[]): string {
  const rewards = rows.flatMap(({ reward }) => (reward === null ? [] : [reward]));
  if (rewards.length < 2) return '';
  const mean = rewards.reduce((sum, reward) => sum + reward, 0) / rewards.length;
  const variance = rewards.reduce((sum, reward) => sum + (reward - mean) ** 2, 0) / (rewards.length - 1);
  const isFlat = rows.every(({ advantage }) => advantage === 0);
  const lesson = isFlat ? ': no completion is better than the others, there is nothing to learn here' : '';
  return `rewards: mean ${brief(mean)}, standard deviation ${brief(Math.sqrt(variance))}${lesson}`;
}

const rewardOf = ({ reward }: ToldRow): string => (reward === null ? 'no number' : brief(reward));

/** The largest advantage and the largest weight of these. */
export function mostOf(rows: ToldRow[]): Most {
  const largest = (values: number[]) => values.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  return {
    advantage: largest(rows.map(({ advantage = 0 }) => advantage)),
    weight: largest(rows.flatMap(({ weights = [] }) => weights)),
  };
}

/** Completion `i` of a group. `most.advantage` fills the bar, too. */
export function cardOf(row: ToldRow, i: number, rows: ToldRow[], shade: Shade, most: Most): HTMLElement {
  const { advantage } = row;
  const said = advantage === undefined ? '' : `, advantage ${signed(advantage)}`;
  const parts = row.rewards.map(([name, value]) => `${visible(name)} ${brief(value)}`).join(' · ');
  const label = `completion ${i + 1} of ${rows.length}, reward ${rewardOf(row)}${said}`;
  return element(
    'article',
    { class: 'card', tabindex: 0, 'aria-label': label },
    element(
      'div',
      { class: 'worth' },
      element('span', { class: 'number' }, String(i + 1)),
      element('span', { class: 'reward' }, element('small', {}, 'reward '), rewardOf(row)),
      advantage !== undefined && barOf(advantage, most.advantage),
      advantage !== undefined && element('span', { class: 'advantage' }, element('small', {}, 'A '), signed(advantage)),
    ),
    parts !== '' && element('div', { class: 'parts' }, parts),
    textOf(row, shade, most),
    tokensOf(row),
  );
}

/** An answer to a held-out question. */
export const answerOf = (when: string, row: ToldRow | undefined): HTMLElement =>
  element(
    'div',
    { class: 'answer' },
    element('small', {}, row ? `${when}, reward ${rewardOf(row)}` : `${when}: not asked`),
    row && textOf(row, 'nothing'),
  );
