/** Elements of the page. Whatever a run has written becomes text, never anything else. */

/** `false` and `undefined`: nothing. */
type Child = Node | string | false | undefined;
type Properties = Record<string, string | number | boolean | undefined>;

/**
 * Makes an element.
 * @param attributes - `true`: it is there, without a value; `false` and `undefined`: it is not
 */
export function element<Name extends keyof HTMLElementTagNameMap>(
  name: Name,
  attributes: Properties = {},
  ...children: Child[]
): HTMLElementTagNameMap[Name] {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== false) made.setAttribute(key, value === true ? '' : String(value));
  }
  fill(made, ...children);
  return made;
}

/** Puts children into an element, in place of those that it has. */
export const fill = (parent: HTMLElement, ...children: Child[]): void =>
  parent.replaceChildren(...children.filter((child) => child !== false && child !== undefined));

/** A button that does something. */
export function button(text: Child, act: () => void, attributes: Properties = {}): HTMLButtonElement {
  const made = element('button', { type: 'button', ...attributes }, text);
  made.addEventListener('click', act);
  return made;
}

/**
 * Puts other cards in the place of cards. Tables that were open stay open, and the focus stays on the card, or on its summary,
 * that has it.
 */
export function replaceCards(parent: HTMLElement, ...children: Child[]): void {
  const cards = () => [...parent.querySelectorAll<HTMLElement>('.card')];
  const partOf = (card: HTMLElement | undefined, selector: string) => card?.querySelector<HTMLElement>(selector);
  const before = cards();
  const open = before.map((card) => Boolean(partOf(card, 'details[open]')));
  const focused = before.findIndex((card) => card.contains(document.activeElement));
  const isOnSummary = partOf(before[focused], 'summary') === document.activeElement && focused >= 0;
  fill(parent, ...children);
  const after = cards();
  for (const [i, card] of after.entries()) if (open[i]) partOf(card, 'details')?.setAttribute('open', '');
  const card = after[Math.min(focused, after.length - 1)];
  if (focused >= 0) (isOnSummary ? partOf(card, 'summary') : card)?.focus({ preventScroll: true });
}

/** An SVG document as a picture: none of it can reach the page. */
export const picture = (svg: string, label: string, className: string): HTMLImageElement =>
  element('img', { src: `data:image/svg+xml;charset=utf-8,${encodeURIComponent(svg)}`, alt: label, class: className });

/** Characters that steer a terminal, or the direction of a text, as what they are: ␛ for escape, ⟨202e⟩ for an override. */
export const visible = (text: string): string =>
  text
    // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
    .replace(/[\u0000-\u0008\u000b-\u001f]/g, (char) => String.fromCharCode(0x2400 + char.charCodeAt(0)))
    .replace(/[\u007f-\u009f\u061c\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff]/g, (char) => {
      return `⟨${char.charCodeAt(0).toString(16)}⟩`;
    });

/** Three digits, of thousands all, with the sign of a minus. */
export function brief(value: number): string {
  const size = Math.abs(value);
  return String(size >= 1000 && size < 1e6 ? Math.round(value) : Number(value.toPrecision(3))).replace('-', '−');
}

/** With its sign. */
export const signed = (value: number): string => `${value > 0 ? '+' : ''}${brief(value)}`;

/** Seconds as 2 h 5 min, 3 min, 20 s. */
export function duration(seconds: number): string {
  if (seconds < 60) return `${Math.ceil(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}
