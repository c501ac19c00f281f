/** Completions as cards. */
import type { ToldRow } from '../told.ts';
import { brief, element, signed, visible } from './dom.ts';

/** What the tokens are shaded by. */
export const SHADES = ['log-prob', 'advantage', 'nothing'] as const;
export type Shade = (typeof SHADES)[number];

const percent = (logProb: number): string => {
  const share = 100 * Math.exp(logProb);
  return `${share < 10 ? share.toPrecision(2) : share.toFixed(0)} %`;
};

/** How much of its shade a token has, from 0 to 1, and which. */
function shadeOf(logProb: number | null, { advantage = 0 }: ToldRow, shade: Shade, most: number): [string, number] {
  if (logProb === null) return ['tool', 0];
  if (shade === 'log-prob') return ['surprise', 1 - Math.exp(Math.min(0, logProb))];
  if (shade === 'advantage') return [advantage < 0 ? 'worse' : 'better', most > 0 ? Math.abs(advantage) / most : 0];
  return ['', 0];
}

/** The text of a completion: its tokens, where they are known. */
function textOf(row: ToldRow, shade: Shade, most: number): HTMLElement {
  const { pieces, logProbs } = row;
  if (!pieces || !logProbs) return element('p', { class: 'text', dir: 'auto' }, visible(row.completion));
  const tokens = pieces.map((piece, t) => {
    const [kind, share] = shadeOf(logProbs[t], row, shade, most);
    const logProb = logProbs[t];
    const title = logProb === null ? 'a tool wrote it' : `log-prob ${brief(logProb)}, ${percent(logProb)}`;
    const token = element('span', { class: `token ${kind}`, title }, visible(piece));
    if (share > 0.005) token.style.setProperty('--share', `${Math.round(100 * share)}%`);
    return token;
  });
  return element('p', { class: 'text' }, ...tokens);
}

/** How many tokens there are, and each of them, made when that is asked for. */
function tokensOf({ tokens, pieces, logProbs }: ToldRow): HTMLElement {
  const count = `${tokens ?? pieces?.length ?? '?'} tokens`;
  if (!pieces || !logProbs) return element('small', {}, count);
  const details = element('details', {}, element('summary', {}, count));
  details.addEventListener(
    'toggle',
    () => {
      const cells = (...texts: string[]) => texts.map((text) => element('td', {}, text));
      const rows = pieces.map((piece, t) => {
        const logProb = logProbs[t];
        const numbers = logProb === null ? ['', 'a tool’s'] : [brief(logProb), percent(logProb)];
        return element('tr', {}, ...cells(visible(piece).replaceAll('\n', '⏎'), ...numbers));
      });
      const head = ['token', 'log-prob', 'probability'].map((text) => element('th', { scope: 'col' }, text));
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

/** The largest advantage, whatever its sign. */
export const largest = (rows: ToldRow[]): number =>
  Math.max(0, ...rows.map(({ advantage = 0 }) => Math.abs(advantage)));

/** Completion `i` of a group. `most`: the advantage that fills the bar, and has the full shade. */
export function cardOf(row: ToldRow, i: number, rows: ToldRow[], shade: Shade, most: number): HTMLElement {
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
      advantage !== undefined && barOf(advantage, most),
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
    row && textOf(row, 'nothing', 0),
  );
